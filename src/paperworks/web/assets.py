"""Style, scripts and icon: read once, compressed once, at addresses that change with their content."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from paperworks.lab.report.html import stylesheet

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
FILES = ("site.css", "site.js", "theme.js", "icon.svg")


@dataclass(frozen=True)
class Asset:
    """One file as it is sent."""

    body: bytes
    packed: bytes
    media_type: str
    address: str


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """The files by name. The style sheet is the report's followed by the site's own."""
    folder, found = files("paperworks.web") / "static", {}
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        body = (style(text) if name == "site.css" else text).encode()
        stem, _, kind = name.partition(".")
        address = f"/static/{stem}-{hashlib.sha256(body).hexdigest()[:12]}.{kind}"
        found[name] = Asset(body, gzip.compress(body, 9, mtime=0), TYPES[kind], address)
    return found


def style(own: str) -> str:
    """The report's style sheet, its colours also for readers who chose light or dark themselves, then the site's."""
    report = stylesheet()
    light, dark = re.findall(r":root \{(.*?)\}", report, re.DOTALL)[:2]
    chosen = "".join(
        f':root[data-theme="{name}"] {{{re.sub(r"color-scheme:[^;]*;", "", colours)} color-scheme: {name}; }}\n'
        for name, colours in (("light", light), ("dark", dark))
    )
    return f"{report}@media screen {{\n{chosen}}}\n{own}"


def static(name: str) -> str:
    """The address of a file."""
    return assets()[name].address


async def serve_asset(request: Request) -> Response:
    """A file under its address; 404 for any other name, so that nothing else of the disk can be reached."""
    asset = next((one for one in assets().values() if one.address == request.url.path), None)
    if asset is None:
        raise LookupError("There is no such file.")
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "Accept-Encoding"}
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(asset.packed if packed else asset.body, headers=headers, media_type=asset.media_type)
