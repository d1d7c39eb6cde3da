"""Settings come from the environment, complete themselves and refuse to open the door by accident."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.settings import Settings, is_loopback


def test_defaults_are_local_and_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.data_dir == tmp_path / "var"
    assert settings.models_dir == tmp_path / "var" / "models"
    assert settings.artifacts_dir == tmp_path / "var" / "artifacts"
    assert settings.datasets_dir is None
    assert Settings(data_dir=Path("elsewhere")).models_dir == tmp_path / "elsewhere" / "models"
    assert Settings(models_dir=Path()).models_dir == tmp_path


def test_the_environment_sets_everything_and_empty_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTRY_PORT", "9000")
    monkeypatch.setenv("QUANTRY_MODELS_DIR", "/models")
    monkeypatch.setenv("QUANTRY_API_KEY", "hush")
    monkeypatch.setenv("QUANTRY_DATABASE_URL", "")
    monkeypatch.setenv("QUANTRY_DATASETS_DIR", "")
    settings = Settings()
    assert (settings.port, settings.models_dir) == (9000, Path("/models"))
    assert settings.database_url is None
    assert settings.datasets_dir is None
    assert "hush" not in repr(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "2130706433"])  # noqa: S104 — refused
def test_an_open_door_needs_a_key_or_a_clear_word(host: str) -> None:
    with pytest.raises(ValidationError, match=r"QUANTRY_API_KEY.*QUANTRY_ALLOW_ANONYMOUS"):
        Settings(host=host)
    assert Settings.model_validate({"host": host, "api_key": "k" * 32}).host == host
    assert Settings(host=host, allow_anonymous=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_is_recognized(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host).api_key is None


def test_directories_for_links_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().link_dirs == ()
    monkeypatch.setenv("QUANTRY_MODEL_LINK_DIRS", "/mnt/weights, /srv/hub:/srv/old,")
    assert Settings().link_dirs == (Path("/mnt/weights"), Path("/srv/hub"), Path("/srv/old"))


@pytest.mark.parametrize("text", ["weights", "/mnt/weights,..", "/", "/srv/.."])
def test_a_wrong_directory_for_links_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="QUANTRY_MODEL_LINK_DIRS must be absolute directories"):
        Settings(model_link_dirs=text)


def test_a_lease_outlives_two_heartbeats() -> None:
    with pytest.raises(ValidationError, match="QUANTRY_LEASE_SECONDS"):
        Settings(lease_seconds=15, heartbeat_seconds=10)


def test_a_bad_value_is_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTRY_PORT", "secret-in-the-wrong-place")
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "secret" not in str(refused.value)


def test_an_error_at_the_start_names_the_variable_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"QUANTRY_{name.upper()}", "wrong {in} every way")
    with pytest.raises(ValidationError) as refused:
        Settings()
    found = {str(error["loc"][0]): error["msg"] for error in refused.value.errors()}
    # Everything but free text: secrets, directories, hosts.
    assert len(found) >= 35
    assert {"QUANTRY_PORT", "QUANTRY_DEVICE", "QUANTRY_ALLOW_ANONYMOUS", "QUANTRY_ARTIFACTS_URL"} <= found.keys()
    for variable, message in found.items():
        assert message.startswith(f"{variable} must be ")
        assert message.endswith(".")
        assert not re.search(r"Input|valid |factory|\\|\^", message)
