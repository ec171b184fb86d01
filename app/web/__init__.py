"""Serves the browser page at / and its static files below /page/.

The files are public; the page fetches everything it shows from the public API with the visitor's own key.
`main.js` is the entry point; `lib/` has the API client and the state, `panels/` the parts of the page,
`charts/` the charts that several panels use, and `dialogs/` the dialogs.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.errors import NotFound

FOLDER = Path(__file__).parent
INDEX_PATH = "/"
ASSET_PREFIX = "/page/"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
router = APIRouter(include_in_schema=False)


@router.get(INDEX_PATH)
async def index() -> FileResponse:
    """Return the page."""
    return _file_response("index.html")


@router.get(ASSET_PREFIX + "{name:path}")
async def asset(name: str) -> FileResponse:
    """Return a static file of the page by its path inside this folder, such as `lib/api.js`."""
    return _file_response(name)


def _file_response(name: str) -> FileResponse:
    """Return the file with this path; a request is compared with known names and never becomes a path."""
    files = {
        file.relative_to(FOLDER).as_posix(): file for file in FOLDER.rglob("*") if file.suffix in MEDIA_TYPES
    }
    if name not in files:
        raise NotFound(f"the page has no file {name!r}", code="http_404")
    return FileResponse(files[name], media_type=MEDIA_TYPES[files[name].suffix])
