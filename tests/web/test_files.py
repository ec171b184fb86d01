"""The static files of the page: every file is served, and nothing outside the folder is."""

import re
from pathlib import Path, PurePosixPath

import httpx
import pytest

from app import web

FILES = sorted(
    file.relative_to(web.FOLDER).as_posix()
    for file in web.FOLDER.rglob("*")
    if file.suffix in web.MEDIA_TYPES
)


@pytest.mark.parametrize("name", FILES)
def test_serves_every_file_with_its_media_type(address: str, name: str) -> None:
    response = httpx.get(f"{address}{web.ASSET_PREFIX}{name}")
    assert response.status_code == 200
    assert response.headers["content-type"] == web.MEDIA_TYPES[Path(name).suffix]
    assert response.text == (web.FOLDER / name).read_text()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_imported_modules_exist(name: str) -> None:
    for target in re.findall(r'from "(\.[^"]+)"', (web.FOLDER / name).read_text()):
        module = (web.FOLDER / PurePosixPath(name).parent / target).resolve()
        assert module.relative_to(web.FOLDER).as_posix() in FILES, target


@pytest.mark.parametrize(
    "name",
    [
        "", "lib", "lib/", "__init__.py", "../settings.py", "%2e%2e/settings.py", "..%2fsettings.py",
        "lib/%2e%2e/%2e%2e/settings.py", "lib/..%2f..%2fsettings.py", "lib/../main.js%00", "%2fetc%2fpasswd",
        "lib//api.js", "./main.js%2f", "..%5csettings.py",
    ],
)  # fmt: skip
def test_serves_nothing_but_its_files(address: str, name: str) -> None:
    with httpx.Client() as client:
        response = client.send(_request_without_normalisation(address, name))
    assert response.status_code == 404


def _request_without_normalisation(address: str, name: str) -> httpx.Request:
    """A request whose path reaches the server exactly as written."""
    request = httpx.Request("GET", address)
    target = f"{web.ASSET_PREFIX}{name}".encode()
    request.extensions["target"] = target
    return request
