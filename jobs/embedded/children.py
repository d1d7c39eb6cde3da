"""Server processes that end with this one, and the account that they run as when this process is root."""

import ctypes
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobs.kit.errors import InstallationError

# From <linux/prctl.h>. Other systems have no such call.
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_ACCOUNT_NAME: Final = "pgserver"
_LOG_TAIL_BYTES: Final = 2000

Server = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Account:
    """A system user."""

    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """Return the account for PostgreSQL: None for the current user; as root, a system user, made if missing.

    Raises:
        InstallationError: the user can not be made.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_ACCOUNT_NAME)
    except KeyError:
        _make_account()
        entry = pwd.getpwnam(_ACCOUNT_NAME)
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def _make_account() -> None:
    useradd = shutil.which("useradd")
    try:
        if useradd is None:
            raise FileNotFoundError("useradd")
        command = [useradd, "--system", "--no-create-home", "--user-group", _ACCOUNT_NAME]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 — fixed words, absolute program
    except (OSError, subprocess.CalledProcessError) as error:
        raise InstallationError(
            f"PostgreSQL refuses to run as root, and the user {_ACCOUNT_NAME!r} for it could not be made. "
            "Start Quantry as an ordinary user, or give it a server with QUANTRY_DATABASE_URL."
        ) from error


def allow_traversal(account: Account | None, path: Path) -> None:
    """As root, let others search (not list) the directories above ``path``, because the account must reach it."""
    if account is None:
        return
    for directory in path.absolute().parents:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            directory.chmod(mode | stat.S_IXOTH)


def chown_to(account: Account | None, directory: Path) -> None:
    """As root, give the directory and everything in it to the account, unless it has it already."""
    if account is None or directory.stat().st_uid == account.uid:
        return
    # The directory itself comes last: its owner shows that everything in it is done.
    for path in (*directory.rglob("*"), directory):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def spawn(
    arguments: Sequence[str | Path], *, log: Path, on_parent_death: signal.Signals, account: Account | None = None
) -> Server:
    """Start a server in a session of its own. On Linux it gets the signal when this process ends in any way."""
    parent = os.getpid()

    def bind_to_parent() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(on_parent_death), 0, 0, 0)
            # The parent may have ended before prctl was called; then no signal would come.
            if os.getppid() != parent:
                os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 — our own wheels' programs with arguments made here
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
            preexec_fn=bind_to_parent,  # after the change of user, which would clear the signal again
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )


def wait_until(ready: Callable[[], bool], process: Server, *, name: str, log: Path, seconds: float) -> None:
    """Poll until ``ready``.

    Raises:
        InstallationError: the process ended or was not ready in time; the message has the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            ended = (
                f"ended with code {process.returncode}" if process.returncode is not None else "was not ready in time"
            )
            raise InstallationError(f"{name} {ended}. The end of {log}:\n{_tail(log)}")
        time.sleep(0.02)


def stop(process: Server, signals: Sequence[signal.Signals], *, seconds: float) -> None:
    """Send the signals one by one, each with ``seconds`` to take effect, until the process ends; last is SIGKILL."""
    for number in (*signals, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return stream.read().decode(errors="replace")
