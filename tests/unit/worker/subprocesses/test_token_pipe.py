"""A token on its way to a subprocess."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.subprocesses.token_pipe import MAX_TOKEN_BYTES, handed_over, operator_token, read_token, token_arguments

TOKEN = "hf_hunter2"  # noqa: S105 — opens nothing
READS_TWICE = (
    "import sys, os\nfrom worker.subprocesses.token_pipe import read_token\n"
    "fd = int(sys.argv[2])\nprint(read_token(fd))\n"
    "try:\n    os.fstat(fd)\nexcept OSError:\n    print('closed')"
)


def test_a_subprocess_reads_it_once_from_the_pipe() -> None:
    with handed_over(TOKEN) as pipes:
        arguments = token_arguments(pipes)
        assert arguments[0] == "--token-fd"
        assert TOKEN not in " ".join(arguments)
        done = subprocess.run(
            [sys.executable, "-c", READS_TWICE, *arguments], pass_fds=pipes, capture_output=True, text=True, check=True
        )
    assert done.stdout.split() == [TOKEN, "closed"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipes[0])


def test_other_subprocesses_do_not_inherit_the_pipe() -> None:
    with handed_over(TOKEN) as pipes:
        assert not os.get_inheritable(pipes[0])


def test_without_a_token_there_is_no_pipe() -> None:
    with handed_over(None) as pipes:
        assert (pipes, token_arguments(pipes)) == ((), [])
    assert read_token(None) is None


@pytest.mark.parametrize("token", ["", "x" * (MAX_TOKEN_BYTES + 1)])
def test_what_can_not_be_a_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match=f"has {len(token)}"), handed_over(token):
        pass


def test_the_largest_token_fits_into_the_pipe() -> None:
    with handed_over("x" * MAX_TOKEN_BYTES) as (pipe,):
        assert read_token(os.dup(pipe)) == "x" * MAX_TOKEN_BYTES


def test_the_operators_token_is_a_variable_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert operator_token({}) is None
    assert operator_token({"HF_TOKEN": ""}) is None
    assert operator_token({"HF_TOKEN_PATH": str(file)}) == TOKEN
    assert operator_token({"HF_TOKEN": " hf_other ", "HF_TOKEN_PATH": str(file)}) == "hf_other"
    with pytest.raises(FileNotFoundError):
        operator_token({"HF_TOKEN_PATH": str(tmp_path / "missing")})
