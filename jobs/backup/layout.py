"""The paths in a backup's directory, and the content of ``backup.json``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from jobs.artifacts import LocalStore
from jobs.kit.errors import InstallationError

FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a backup contains. ``files`` is None where the files are backed up by other means."""

    made_at: str
    revision: str
    server_version: int
    files: int | None
    bytes: int
    has_key: bool
    format: int = FORMAT


@dataclass(frozen=True)
class Layout:
    """The paths in one directory."""

    root: Path

    @property
    def description(self) -> Path:
        """The file that describes the backup."""
        return self.root / "backup.json"

    @property
    def dump(self) -> Path:
        """The dump of the database."""
        return self.root / "database.dump"

    @property
    def store(self) -> LocalStore:
        """The store of the files."""
        return LocalStore(self.root / "artifacts")

    @property
    def blobs(self) -> Path:
        """The directory with the files themselves."""
        return self.root / "artifacts" / "blobs"

    @property
    def key(self) -> Path:
        """The key of stored credentials."""
        return self.root / "secret.key"

    def describe(self, description: Description) -> None:
        """Write the description, which makes the directory a backup."""
        # Written under another name first: a description that exists is always whole.
        draft = self.description.with_suffix(".json.partial")
        draft.write_text(json.dumps(asdict(description), indent=2) + "\n", encoding="utf-8")
        draft.replace(self.description)

    def read(self) -> Description:
        """Read the description. Raises: InstallationError: the directory is no backup, or one of a later release."""
        try:
            members: dict[str, Any] = json.loads(self.description.read_text(encoding="utf-8"))
            if members["format"] != FORMAT:
                raise InstallationError(
                    f"The backup in {self.root} is of format {members['format']}, and this release reads {FORMAT}. "
                    "Restore it with the release that made it, and then upgrade."
                )
            return Description(**members)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InstallationError(
                f"There is no complete backup in {self.root}: {self.description.name} is missing or damaged."
            ) from error
