"""The page at /: a few static files beside this one, open to everybody, which ask the public API.

Nothing in them is anybody's; what they show, they fetch with the visitor's own key.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.errors import NotFound

FOLDER = Path(__file__).parent
FRONT = "/"
PARTS = "/page/"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
router = APIRouter(include_in_schema=False)


@router.get(FRONT)
async def front() -> FileResponse:
    """The page."""
    return _sent("index.html")


@router.get(PARTS + "{name}")
async def part(name: str) -> FileResponse:
    """What the page is made of."""
    return _sent(name)


def _sent(name: str) -> FileResponse:
    """A file by name; the name is looked up, never made into a path."""
    here = {file.name: file for file in FOLDER.iterdir() if file.suffix in KINDS}
    if name not in here:
        raise NotFound("the page has no such part", code="http_404")
    return FileResponse(here[name], media_type=KINDS[here[name].suffix])
