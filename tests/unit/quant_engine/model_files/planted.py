"""Put things that are no ordinary files into a model's directory."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

SECRET: Final = b"root:x:0:0:the service's own key"
GIGABYTE: Final = 1 << 30


def plant_link_out(path: Path) -> None:
    """Make a link to a secret outside of the directory named ``model``."""
    secret = next(parent for parent in path.parents if parent.name == "model").with_name("secret")
    secret.write_bytes(SECRET)
    path.symlink_to(secret)


def plant_device(path: Path) -> None:
    """Make a link to a device that never ends."""
    path.symlink_to("/dev/zero")


def plant_loop(path: Path) -> None:
    """Make two links that lead to each other."""
    path.symlink_to(f"{path.name}.other")
    path.with_name(f"{path.name}.other").symlink_to(path.name)


def plant_socket(path: Path) -> None:
    """Bind a socket."""
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listener:
        # The address of a socket may not be longer than about 100 bytes.
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def plant_gigabyte(path: Path) -> None:
    """Make a file of a gigabyte that takes no space."""
    with path.open("wb") as file:
        file.truncate(GIGABYTE)


PLANTS: Final[dict[str, Callable[[Path], None]]] = {
    "link out": plant_link_out,
    "device": plant_device,
    "loop": plant_loop,
    "fifo": os.mkfifo,
    "socket": plant_socket,
    "gigabyte": plant_gigabyte,
    "folder": Path.mkdir,
}
