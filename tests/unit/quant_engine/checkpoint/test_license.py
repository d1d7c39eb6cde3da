"""What license a model's directory states."""

from pathlib import Path

import pytest

from quant_engine.checkpoint.license import License, source_license
from quant_engine.model_files import ModelFiles

_APACHE = "\n          Apache License\n   Version 2.0, January 2004\n  http://www.apache.org/licenses/\n"
_MIT = "MIT License\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy of this software"


def _card(fields: str) -> str:
    return f"---\n{fields}\n---\n\n# A model\n\nlicense: wtfpl\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"README.md": "# No front matter\nlicense: mit"}, None),
        ({"README.md": _card("language: en\nlicense: mit\ntags:\n- x")}, License(id="mit")),
        ({"README.md": _card('license: "Apache-2.0"  ')}, License(id="apache-2.0")),
        ({"README.md": _card("license: mit").replace("\n", "\r\n")}, License(id="mit")),
        ({"README.md": _card("license: mit"), "LICENSE": _APACHE}, License(id="mit")),
        ({"README.md": _card("license: unknown"), "LICENSE": _APACHE}, License(id="apache-2.0")),
        ({"README.md": _card("license: |\n  evil"), "LICENSE": _APACHE}, License(id="apache-2.0")),
        ({"README.md": _card("license: ../../etc")}, None),
        ({"LICENSE": _APACHE}, License(id="apache-2.0")),
        ({"License.txt": _MIT}, License(id="mit")),
        ({"LICENSE": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n"}, License(id="llama3.2")),
        ({"LICENSE": "All rights reserved."}, License(id="other", link="LICENSE")),
        ({"LICENSE (1).md": "Ours."}, License(id="other", link="LICENSE-1-.md")),
        ({"NOTICE": _MIT}, None),
        (
            {"README.md": _card("license: other\nlicense_name: qwen-research\nlicense_link: https://e.org/a?b=c")},
            License(id="other", name="qwen-research", link="https://e.org/a?b=c"),
        ),
        (
            {
                "README.md": _card("license: other\nlicense_name: a|b](c\nlicense_link: javascript:alert(1)"),
                "LICENSE": "x",
            },
            License(id="other", link="LICENSE"),
        ),
    ],
)
def test_the_license_comes_from_the_card_or_the_license_file(
    files: dict[str, str], expected: License | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode())
    assert source_license(ModelFiles(tmp_path)) == expected


def test_a_card_that_is_no_text_states_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\n\xff\xfe\x00license: mit\n---\n")
    (tmp_path / "LICENSE").mkdir()
    assert source_license(ModelFiles(tmp_path)) is None
