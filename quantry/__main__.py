"""``python -m quantry``: the same command as ``quantry``."""

import sys
from pathlib import Path

# Python has put the current directory first on the path for -m. A folder there that has the name of a package, such as
# "rich", would be imported in its place. The directory stays only where it is the one that Quantry itself is run from.
if not sys.flags.safe_path and sys.path[0] == str(Path.cwd()) != str(Path(__file__).resolve().parent.parent):
    del sys.path[0]

from quantry.cli.main import main

if __name__ == "__main__":
    main()
