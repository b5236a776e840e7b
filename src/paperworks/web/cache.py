"""Rendered pages kept as bytes until what they show changes.

A page that is kept is sent without the framework and without a thread: that is what serves many readers at once. One
reader's form token is put into the bytes as they are sent, so pages with forms are kept too.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sqlite3
import struct
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Any

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paperworks.feed.store import Store
from paperworks.lab.store.database import StoreError
from paperworks.web.security import Tokens, header
from paperworks.web.state import Site

PAGES = 2000
BYTES = 64 * 1024 * 1024
"""At most so many pages, and so much of them, are kept; those not read for the longest time go first."""
UNKEPT = ("/static/", "/runs", "/api/runs", "/healthz", "/owner", "/digest", "/confirm/", "/u/", "/preferences/")
MEANWHILE_SECONDS = 5.0
"""How old the page before may be that others are given while one reader's request makes it anew."""
SMALL = 600
"""Bytes below which compressing is not worth it."""

State = tuple[int, float]


@dataclass(frozen=True)
class Kept:
    """A rendered page. `parts` are what lies between the places of the reader's form token; one part has none.

    `packed` are the parts deflated, each by itself: with the token between them, not compressed, they make one stream,
    at no cost a reader, and the length of the stream tells nothing of the token.
    """

    parts: tuple[bytes, ...]
    headers: tuple[tuple[bytes, bytes], ...]
    digest: str = ""
    packed: tuple[bytes, ...] = ()
    generation: Any = None
    made: float = 0.0
    modified: int = 0
    """Second in which it became what it is; a page is sent with it where it is the same for every reader."""

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(map(len, self.parts)) + sum(map(len, self.packed))


def deflated(piece: bytes, level: int = 6) -> bytes:
    """A piece of a raw deflate stream that ends on a byte and that others may follow."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)


def gzipped(stream: bytes, body: bytes) -> bytes:
    """The gzip file of `body`, whose deflated pieces are `stream`."""
    end = struct.pack("<II", zlib.crc32(body), len(body) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + stream + b"\x03\x00" + end


class Freshness:
    """Tells what generation the database is at.

    On SQLite a counter in the file says at each request whether anything was written, for microseconds; only then is
    the database asked what. On PostgreSQL it is asked once in `Settings.fresh_seconds`.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._known: Any = None
        self._state: State | None = None
        self._looking: dict[int, tuple[State, asyncio.Future[None]]] = {}
        self._forgotten = 0
        self._file = _counter(site.store)

    def _now(self) -> State:
        """Another value when the database has to be asked again."""
        if self._file is not None:
            try:
                return self._forgotten, int(self._file.execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.Error:
                return self._forgotten, time.monotonic()
        seconds = self.site.settings.fresh_seconds
        return self._forgotten, time.monotonic() // seconds if seconds > 0 else time.monotonic()

    async def generation(self) -> Any:
        """What pages made now are made from: equal for two moments between which nothing changed for readers."""
        state = self._now()
        if state != self._state:
            await self._look(state)
        # Rankings, and which day is the newest, change with the time alone.
        return self._known, int(self.site.now().timestamp() // 60)

    async def _look(self, state: State) -> None:
        """Ask the database, once for all who want to know at the same time."""
        loop = asyncio.get_running_loop()
        running = self._looking.get(id(loop))
        if running is not None and running[0] == state:
            await asyncio.shield(running[1])
            if self._state != state:
                raise StoreError("the database could not be asked")
            return
        answer: asyncio.Future[None] = loop.create_future()
        self._looking[id(loop)] = (state, answer)
        try:
            self._known = await anyio.to_thread.run_sync(self.site.generation)
            self._state = state
        finally:
            if self._looking.get(id(loop)) == (state, answer):
                del self._looking[id(loop)]
            answer.set_result(None)

    def forget(self) -> None:
        """Ask again: this process has written."""
        self._forgotten += 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _counter(store: Store) -> sqlite3.Connection | None:
    if store.database.engine.name != "sqlite":
        return None
    return sqlite3.connect(store.database.location, timeout=0.1, isolation_level=None, check_same_thread=False)


class PageCache:
    """The layer around the application that keeps and completes pages.

    What the application marks ``Cache-Control: no-store`` or ``private``, answers to the owner, and streams pass
    through.
    """

    def __init__(self, app: ASGIApp, site: Site, tokens: Tokens) -> None:
        self.app, self.tokens, self.site = app, tokens, site
        self.fresh = Freshness(site)
        self._pages: OrderedDict[tuple[str, bytes], Kept] = OrderedDict()
        self._bytes = 0
        self._making: dict[tuple[int, str, bytes], tuple[Any, asyncio.Future[None]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        if method not in ("GET", "HEAD"):
            await self._through(scope, receive, send, None)
            self.fresh.forget()
            return
        if method == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        if path.startswith("/static/"):
            await self.app(scope, receive, send)
            return
        if path.startswith(UNKEPT) or self._of_owner(scope):
            await self._through(scope, receive, send, None)
            return
        await self._kept(scope, receive, send)

    def _of_owner(self, scope: Scope) -> bool:
        asks = header(scope, b"authorization") or self.tokens.owner_cookie in header(scope, b"cookie")
        return bool(asks) and self.tokens.is_owner(scope, self.site.now().timestamp())

    async def _kept(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = (scope["path"], scope["query_string"])
        try:
            generation = await self.fresh.generation()
        except Exception:  # the application will meet it as well, and say so in a page
            await self._through(scope, receive, send, None)
            return
        loop = asyncio.get_running_loop()
        place = (id(loop), *key)
        # Of several readers who want a page that is not there, one makes it. The others are given the page of a moment
        # ago, or wait.
        while (page := self._get(key, generation)) is None and (making := self._making.get(place)) is not None:
            before = self._pages.get(key)
            if before is not None and making[0] == generation and time.monotonic() - before.made < MEANWHILE_SECONDS:
                page = before
                break
            await asyncio.shield(making[1])
            if making[0] == generation:  # what was made for this moment is not one to keep
                page = self._get(key, generation)
                break
        if page is not None:
            await self._answer(page, scope, send)
            return
        mine = generation, loop.create_future()
        self._making.setdefault(place, mine)
        try:
            await self._through(scope, receive, send, generation)
        finally:
            mine[1].set_result(None)
            if self._making.get(place) is mine:
                del self._making[place]

    def _get(self, key: tuple[str, bytes], generation: Any) -> Kept | None:
        page = self._pages.get(key)
        if page is None or page.generation != generation:
            return None
        self._pages.move_to_end(key)
        return page

    def _keep(self, key: tuple[str, bytes], page: Kept) -> None:
        if (before := self._pages.pop(key, None)) is not None:
            self._bytes -= before.size
        if page.size > BYTES // 8:
            return
        self._pages[key] = page
        self._bytes += page.size
        while self._bytes > BYTES or len(self._pages) > PAGES:
            _, gone = self._pages.popitem(last=False)
            self._bytes -= gone.size

    async def _through(self, scope: Scope, receive: Receive, send: Send, generation: Any) -> None:
        """Let the application answer; complete its page, and keep it where a `generation` is given and it may be."""
        start: Message | None = None
        pieces: list[bytes] = []

        async def collect(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_whole(message):
                start = message
            elif message["type"] == "http.response.body" and start is not None:
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    await self._finish(scope, send, start, b"".join(pieces), generation)
            else:
                await send(message)

        await self.app(scope, receive, collect)

    async def _finish(self, scope: Scope, send: Send, start: Message, body: bytes, generation: Any) -> None:
        headers = [(name, value) for name, value in start["headers"] if name not in (b"content-length", b"etag")]
        control = next((value for name, value in headers if name == b"cache-control"), b"")
        private = b"no-store" in control or b"private" in control
        sets_cookie = any(name == b"set-cookie" for name, _ in headers)
        keep = generation is not None and start["status"] == 200 and not private and not sets_cookie
        parts = tuple(body.split(self.tokens.placeholder.encode()))
        if not keep:
            if len(parts) == 1 and not private:
                headers.append((b"cache-control", b"no-store"))
            await self._answer(Kept(parts, tuple(headers)), scope, send, start["status"])
            return
        headers = [(name, value) for name, value in headers if name not in (b"cache-control", b"vary")]
        packed = tuple(map(deflated, parts)) if len(body) > SMALL else ()
        digest = hashlib.sha256(body).hexdigest()[:20]
        key = (scope["path"], scope["query_string"])
        modified = self._modified(self._pages.get(key), digest)
        page = Kept(parts, tuple(headers), digest, packed, generation, time.monotonic(), modified)
        self._keep(key, page)
        await self._answer(page, scope, send)

    def _modified(self, before: Kept | None, digest: str) -> int:
        """The second of a page's last change. Of two changes in one second each gets its own: a reader misses none."""
        now = int(self.site.now().timestamp())
        if before is None:
            return now
        return before.modified if before.digest == digest else max(now, before.modified + 1)

    async def _answer(self, page: Kept, scope: Scope, send: Send, status: int = 200) -> None:
        """Send a page: as it is, compressed, or with the reader's token in it; or say that the reader has it."""
        headers, tag = list(page.headers), page.digest
        has_form, token_of_reader = len(page.parts) > 1, ""
        if has_form:
            visitor = self.tokens.visitor(scope)
            if not visitor:
                visitor = secrets.token_urlsafe(32)
                headers.append((b"set-cookie", self.tokens.set_visitor(visitor).encode()))
            token_of_reader = self.tokens.form_token(visitor)
            tag = tag and f"{tag}-{token_of_reader[:12]}"
        if tag:
            control = b"private, no-cache" if has_form else b"public, max-age=0, must-revalidate"
            headers += [(b"cache-control", control), (b"etag", f'"{tag}"'.encode())]
            headers.append((b"vary", b"Accept-Encoding, Cookie, Authorization"))
            if not has_form:
                headers.append((b"last-modified", formatdate(page.modified, usegmt=True).encode()))
            if _has(header(scope, b"if-none-match"), tag) or (not has_form and _unchanged(scope, page.modified)):
                kept = [one for one in headers if one[0] != b"content-type"]
                await send({"type": "http.response.start", "status": 304, "headers": kept})
                await send({"type": "http.response.body", "body": b""})
                return
        elif has_form and not any(name == b"cache-control" for name, _ in headers):
            headers.append((b"cache-control", b"private, no-store"))
        token = token_of_reader.encode()
        body = token.join(page.parts)
        packable = len(body) > SMALL and not any(name == b"content-encoding" for name, _ in headers)
        if packable and "gzip" in header(scope, b"accept-encoding"):
            pieces = page.packed or tuple(map(deflated, page.parts))
            body = gzipped((deflated(token, 0) if has_form else b"").join(pieces), body)
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _is_whole(start: Message) -> bool:
    """Whether the response is one text, not a stream of events."""
    kind: bytes = next((value for name, value in start["headers"] if name == b"content-type"), b"")
    return start["status"] not in (204, 304) and not kind.startswith(b"text/event-stream")


def _has(sent: str, tag: str) -> bool:
    """Whether an If-None-Match names the tag."""
    return bool(sent) and any(one.strip().removeprefix("W/") in (f'"{tag}"', "*") for one in sent.split(","))


def _unchanged(scope: Scope, modified: int) -> bool:
    """Whether the reader has the page of that second; asked only of one who names no tag (RFC 9110, 13.1.3)."""
    since = header(scope, b"if-modified-since")
    if not since or header(scope, b"if-none-match"):
        return False
    try:
        return parsedate_to_datetime(since).timestamp() >= modified
    except (ValueError, OverflowError):
        return False


def _without_body(send: Send) -> Send:
    async def headers_only(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return headers_only
