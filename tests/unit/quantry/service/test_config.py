"""Where the service is, from the environment."""

from pathlib import Path

import pytest

from quantry.environment import api_key, service_url, url_of
from quantry.errors import QuantryError
from quantry.service.config import serve_config


def test_defaults_are_loopback_and_a_directory_here() -> None:
    config = serve_config({})
    assert (config.host, config.port, config.data_dir) == ("127.0.0.1", 8000, Path.cwd() / "var")
    assert config.models_dir == Path.cwd() / "var" / "models"
    assert service_url({}) == "http://127.0.0.1:8000"
    assert api_key({"QUANTRY_API_KEY": ""}) is None


def test_the_command_line_goes_before_the_environment() -> None:
    environment = {
        "QUANTRY_HOST": "10.0.0.1",
        "QUANTRY_PORT": "1",
        "QUANTRY_DATA_DIR": "/a",
        "QUANTRY_MODELS_DIR": "/m",
    }
    config = serve_config(environment)
    assert (config.host, config.port, config.data_dir, config.models_dir) == ("10.0.0.1", 1, Path("/a"), Path("/m"))
    config = serve_config(environment, host="::1", port=0, data_dir=Path("/b"))
    assert (config.host, config.port, config.data_dir, config.models_dir) == ("::1", 0, Path("/b"), Path("/m"))


@pytest.mark.parametrize("port", ["x", "-1", "65536", "1.5"])
def test_a_port_that_is_none(port: str) -> None:
    with pytest.raises(QuantryError, match=f"QUANTRY_PORT is '{port}'"):
        serve_config({"QUANTRY_PORT": port})


def test_urls_a_client_can_use() -> None:
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"  # noqa: S104 - a name, nothing is bound
    assert url_of("::", 80) == "http://[::1]:80"
    assert url_of("[::1]", 80) == "http://[::1]:80"
    assert url_of("quantry.example", 80) == "http://quantry.example:80"
    assert service_url({"QUANTRY_URL": "https://quantry.example/", "QUANTRY_PORT": "x"}) == "https://quantry.example"
