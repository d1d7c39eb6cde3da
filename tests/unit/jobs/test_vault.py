"""The key of stored tokens: where it comes from, what it opens, how it is replaced."""

import stat
import threading
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from jobs.credentials import Vault
from jobs.kit.errors import CredentialUnreadable, InstallationError
from jobs.settings import Settings

TOKEN = "hf_hunter2"  # noqa: S105 — opens nothing


def new_key() -> str:
    return Fernet.generate_key().decode()


def vault(tmp_path: Path, *keys: str) -> Vault:
    return Vault.open(Settings(data_dir=tmp_path, secret_key=SecretStr(", ".join(keys)) if keys else None))


def test_a_sealed_token_opens_again_and_shows_nothing(tmp_path: Path) -> None:
    opened = vault(tmp_path, new_key())
    sealed = opened.seal(TOKEN)
    assert opened.unseal(sealed) == TOKEN
    assert TOKEN.encode() not in sealed
    assert opened.seal(TOKEN) != sealed


def test_the_newest_key_seals_and_older_ones_still_open(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    sealed = vault(tmp_path, old).seal(TOKEN)
    both = vault(tmp_path, new, old)
    assert both.unseal(sealed) == TOKEN
    assert vault(tmp_path, new).unseal(both.seal(TOKEN)) == TOKEN
    with pytest.raises(CredentialUnreadable):
        vault(tmp_path, new).unseal(sealed)


def test_an_altered_secret_does_not_open(tmp_path: Path) -> None:
    opened = vault(tmp_path)
    sealed = bytearray(opened.seal(TOKEN))
    sealed[20] ^= 1
    with pytest.raises(CredentialUnreadable):
        opened.unseal(bytes(sealed))


def test_without_a_configured_key_one_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "var"
    sealed = vault(home).seal(TOKEN)
    assert vault(home).unseal(sealed) == TOKEN
    (file,) = home.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    vaults: list[Vault] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        vaults.append(vault(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealed = vaults[0].seal(TOKEN)
    assert [each.unseal(sealed) for each in vaults] == [TOKEN] * 8
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("bad", ["hunter2", "", "hunter2" * 6 + "=="])
def test_a_bad_key_is_named_by_its_place_and_not_shown(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InstallationError, match="Key 2 of 2 in QUANTRY_SECRET_KEY is not a Fernet key") as refusal:
        vault(tmp_path, new_key(), bad)
    assert "hunter2" not in str(refusal.value)
    assert "generate_key" in str(refusal.value)


def test_a_damaged_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("hunter2")
    with pytest.raises(InstallationError, match=r"secret\.key is not a Fernet key"):
        vault(tmp_path)


def test_a_data_directory_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstallationError, match="QUANTRY_SECRET_KEY"):
        vault(tmp_path / "file")


def test_a_digest_tells_equal_from_different_under_one_key(tmp_path: Path) -> None:
    key = new_key()
    first, again, other = vault(tmp_path, key), vault(tmp_path, key), vault(tmp_path, new_key())
    assert first.digest("a", TOKEN) == again.digest("a", TOKEN)
    assert len({first.digest("a", "bc"), first.digest("ab", "c"), other.digest("a", "bc")}) == 3
