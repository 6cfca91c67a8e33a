"""The live page: a few files of the package, which talk to the REST interface alone."""

# No postponed annotations here: FastAPI reads them, and must find the types.

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from r2m.errors import Code, Problem

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    # Nothing from elsewhere, and nothing of it in another site's frame. uPlot sets inline styles.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page() -> APIRouter:
    """`/` and the files that it names; they are read once."""
    routes = APIRouter()
    found = {name: _response(name) for name in _names()}

    @routes.get("/", include_in_schema=False)
    async def index() -> Response:
        return found["index.html"]

    @routes.get("/page/{name:path}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in found:
            raise Problem(Code.NOT_FOUND, f"the page has no file {name[:100]!r}")
        return found[name]

    return routes


def _names() -> list[str]:
    root = files("r2m_service") / "page"
    own = [one.name for one in root.iterdir() if one.is_file()]
    return own + [f"vendor/{one.name}" for one in (root / "vendor").iterdir()]


def _response(name: str) -> Response:
    kind = TYPES.get(name.rpartition(".")[2], "text/plain")
    data = (files("r2m_service") / "page" / name).read_bytes()
    return Response(data, headers=HEADERS, media_type=kind)
