"""Names that a client chose. They are repeated in errors only if they look like field names: others may be secrets."""

import re
from typing import Final

_FIELD_NAME: Final = re.compile(r"(?=.{1,40}\Z)[a-z]+[0-9]?(_[a-z]+[0-9]?)*", re.ASCII)


def looks_like_field_name(name: object) -> bool:
    """Return whether ``name`` is lower-case words joined by underscores, as in ``wieghts`` or ``max_run_secs``."""
    return isinstance(name, str) and _FIELD_NAME.fullmatch(name) is not None
