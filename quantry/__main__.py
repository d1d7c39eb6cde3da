"""``python -m quantry``: the same command as ``quantry``."""

import sys
from pathlib import Path

# For -m, Python puts the current directory first on the path. A folder there with the name of a package, such as
# "rich", would be imported instead of the package. The directory stays only if it holds the Quantry that is running.
if not sys.flags.safe_path and sys.path[0] == str(Path.cwd()) != str(Path(__file__).resolve().parent.parent):
    del sys.path[0]

from quantry.cli.main import main

if __name__ == "__main__":
    main()
