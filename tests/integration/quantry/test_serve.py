"""``quantry serve`` as a person runs it: a real process with real children."""

import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from quantry import Quantry
from tests.api_server import cuts_off_an_endless_head
from tests.serving import START_SECONDS, STOP_SECONDS, eventually, gone, serving

pytestmark = pytest.mark.slow


def _refuses_what_a_page_of_another_site_can_send(url: str) -> None:
    """As it is started by default, without a key."""
    job = {"model": {"source": "local", "id": "absent"}, "policy": {"preset": "w4a16"}}
    with httpx.Client(base_url=url) as page:
        rebound = {"Host": "evil.example"}
        assert page.get("/v1/jobs", headers=rebound).status_code == 421, "DNS rebinding"
        assert page.post("/v1/jobs", json=job, headers=rebound).status_code == 421
        # What a form or a fetch without a preflight can send.
        for origin in ("https://evil.example", "null", "http://localhost:3000"):
            plain = {"Origin": origin, "Content-Type": "text/plain"}
            assert page.post("/v1/jobs", json=job, headers=plain).status_code == 403, "CSRF"
            assert page.post("/v1/jobs/job_x/cancel", headers=plain).status_code == 403
        assert cuts_off_an_endless_head(page.base_url.host, page.base_url.port or 80, after=16 << 20)
        assert page.post("/v1/jobs", json=job, headers={"Origin": url}).json()["code"] == "model_not_found"


def test_a_killed_api_comes_back_with_everything_and_a_stop_leaves_nothing(server_data_dir: Path) -> None:
    with serving(server_data_dir, "--no-demo-model") as service, Quantry(service.url()) as client:
        assert client.ready()
        _refuses_what_a_page_of_another_site_can_send(service.url())
        before = service.child("api")
        os.kill(before.pid, signal.SIGKILL)
        # No retry is needed: the connection waits in the queue of the socket that serve holds.
        assert list(client.jobs()) == []
        assert service.child("api").pid != before.pid
        assert "api ended with signal SIGKILL; starting it again" in service.said

        os.kill(service.child("worker").pid, signal.SIGKILL)
        assert eventually(lambda: "worker ended with signal SIGKILL" in service.said, 20)
        assert eventually(client.ready, 60)

        family = service.family()
        assert len(family) >= 5
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(STOP_SECONDS) == 0
        assert gone(family)
        assert service.said.rstrip().endswith("Stopped.")
        assert not (server_data_dir / "serve.json").exists()
    assert {path.name for path in (server_data_dir / "logs").iterdir()} >= {"api.log", "embedded.log", "worker.log"}


def test_nothing_outlives_a_killed_serve_and_the_directory_can_be_used_again(server_data_dir: Path) -> None:
    with serving(server_data_dir, "--no-demo-model") as service:
        service.url()
        family = service.family()
        with serving(server_data_dir, "--no-demo-model") as second:
            assert second.process.wait(STOP_SECONDS) == 1
            assert "error [start_failed]: Another 'quantry serve' uses" in second.said
        service.process.kill()
        service.process.wait()
        assert eventually(lambda: gone(family), 45), [p for p in family if p.is_running()]
    (server_data_dir / "said.txt").unlink()
    with serving(server_data_dir, "--no-demo-model") as again:
        again.url()
        again.process.terminate()
        assert again.process.wait(STOP_SECONDS) == 0


def test_a_taken_port_is_one_clear_line(server_data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(server_data_dir, f"--port={port}", "--no-demo-model") as service:
            assert service.process.wait(STOP_SECONDS) == 1
    (line,) = service.said.splitlines()
    assert line.startswith(f"error [start_failed]: Can not listen on 127.0.0.1 port {port}: Address already in use.")
    assert "QUANTRY_PORT=" in line


def test_no_demo_model_is_a_warning_and_a_signal_while_starting_is_obeyed(server_data_dir: Path) -> None:
    no_index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    with serving(server_data_dir, environment=no_index) as service:
        service.url()
        assert "warning: local:smollm2-135m is not available: error: pip could not download" in service.said
        service.process.terminate()
        assert service.process.wait(STOP_SECONDS) == 0
    with serving(server_data_dir / "other", environment=no_index) as service:
        assert eventually(lambda: "Preparing" in service.said, START_SECONDS)
        family = service.family()
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(STOP_SECONDS) == 0
        assert gone(family)
        assert "ready at" not in service.said


def test_a_host_open_to_others_needs_a_key(server_data_dir: Path) -> None:
    with serving(server_data_dir, "--host=0.0.0.0", "--no-demo-model") as service:
        assert service.process.wait(STOP_SECONDS) == 1
    assert "error [start_failed]: embedded ended while starting." in service.said
    assert "Set QUANTRY_API_KEY" in service.said
