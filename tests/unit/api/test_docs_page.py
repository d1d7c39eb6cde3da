"""The page /docs: everything that it loads is of this server, and its policy allows nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from api.main import create_app
from jobs.settings import Settings
from tests.api_server import serving


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory: Path = tmp_path_factory.mktemp("data")
    app = create_app(Settings(data_dir=directory, database_url="postgresql://nobody@127.0.0.1:1/none"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def _links(client: httpx.Client) -> list[str]:
    page = client.get("/docs")
    scripts = client.get("/docs/start.js").text
    found = re.findall(r'(?:src|href)="([^"]*)"', page.text) + re.findall(r'url: "([^"]*)"', scripts)
    return [urljoin(str(page.url), link) for link in found if not link.startswith("data:")]


def test_everything_that_the_page_loads_is_here(client: httpx.Client) -> None:
    links = _links(client)
    assert len(links) == 4
    for link in links:
        assert link.startswith(str(client.base_url))
        response = client.get(link)
        assert response.status_code == 200, link
        assert response.headers["x-content-type-options"] == "nosniff"
    types = {link.rpartition(".")[2]: client.get(link).headers["content-type"].split(";")[0] for link in links}
    assert types == {"css": "text/css", "js": "text/javascript", "json": "application/json"}


def test_the_files_are_swagger_ui_and_ask_no_other_server(client: httpx.Client) -> None:
    script = client.get("/docs/swagger-ui-bundle.js").text
    style = client.get("/docs/swagger-ui.css").text
    assert "SwaggerUIBundle" in script
    assert 'dom_id: "#swagger-ui"' in client.get("/docs/start.js").text
    assert set(re.findall(r"(?:url\(|@import)\s*[\"']?(\w+:?)", style)) == {"data:"}


def test_the_policy_of_the_page_is_strict(client: httpx.Client) -> None:
    page = client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy)
    # What the policy forbids is not in the page: no script, no style and no handler inside it.
    assert re.findall(r"<script>|<style|\son\w+=|style=", page.text) == []


def test_nothing_else_is_served_there(client: httpx.Client) -> None:
    for path in ("/docs/", "/docs/LICENSE", "/docs/..%2f__init__.py", "/docs/..", "/redoc", "/docs/oauth2-redirect"):
        assert client.get(path).status_code == 404, path
    assert client.get("/docs?url=https://evil.example/openapi.json").status_code == 422
