"""Who may do what: response headers, hosts, sizes, rates, form tokens, the owner.

The middleware is plain ASGI, outside the framework, so that what it refuses costs little.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paperworks.web.errors import problem
from paperworks.web.settings import Rate, Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
PATH_LIMIT, QUERY_LIMIT = 512, 2048
OWNER_SECONDS = 12 * 3600
VISITOR_SECONDS = 365 * 24 * 3600
ADDRESSES = 20_000
"""So many addresses are counted; who came first is forgotten first."""


def response_headers(settings: Settings) -> list[tuple[bytes, bytes]]:
    """The headers of every response."""
    found = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        # Not no-referrer: browsers then send "Origin: null" with the site's own forms.
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=(), interest-cohort=()",
        "x-frame-options": "DENY",
    }
    if settings.https:
        found["strict-transport-security"] = "max-age=31536000; includeSubDomains"
    return [(name.encode(), value.encode()) for name, value in found.items()]


def header(scope: Scope, name: bytes) -> str:
    """A header of the request, empty where it has none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def cookie(scope: Scope, name: str) -> str:
    """A cookie of the request, empty where it has none."""
    sent = header(scope, b"cookie")
    if name not in sent:
        return ""
    try:
        found = SimpleCookie(sent).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


class Limiter:
    """Token buckets by what is asked and by the client's address, in memory, of bounded number."""

    def __init__(self, rates: Mapping[str, Rate], clock: Callable[[], float] = time.monotonic) -> None:
        self.rates, self.clock = rates, clock
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def wait(self, what: str, address: str) -> float:
        """Take one token; 0, or where there is none the seconds until there is."""
        rate, key, now = self.rates[what], (what, _network(address)), self.clock()
        left, at = self._buckets.get(key, (float(rate.burst), now))
        left = min(float(rate.burst), left + (now - at) * rate.per_minute / 60)
        enough = left >= 1
        self._buckets[key] = (left - 1 if enough else left, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if enough else (1 - left) * 60 / rate.per_minute


def _network(address: str) -> str:
    """Whom to count as one: an IPv4 address, or the /64 network of an IPv6 address, of which one host has plenty."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def limited(method: str, path: str, query: bytes = b"") -> str | None:
    """The name of the rate under which a request falls."""
    if method in ("GET", "HEAD"):
        searches = path.startswith("/feeds/") and b"query=" in unquote_to_bytes(query)
        return "search" if searches or path in ("/search", "/api/search") else None
    if method != "POST":
        return None
    if path in ("/subscribe", "/api/subscribe"):
        return "subscribe"
    if path == "/owner":
        return "owner"
    return "vote" if path.startswith("/paper/") and path.endswith("/vote") else None


class Guard:
    """The outermost layer: refuses what no page wants, and puts the headers on every response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.headers = response_headers(settings)
        self.hosts = settings.served_hosts
        self.limiter = Limiter(settings.rates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = list(message.get("headers", ()))
                names = {name for name, _ in sent}
                message["headers"] = sent + [one for one in self.headers if one[0] not in names]
            await send(message)

        refused = self.refusal(scope)
        if refused is not None:
            status, detail, more = refused
            await problem(scope, status, detail, more)(scope, receive, with_headers)
            return
        await self.app(scope, self._bounded(receive), with_headers)

    def refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        """Status, reason and headers of a refusal; None for what may pass."""
        if _host_name(header(scope, b"host")) not in self.hosts:
            return 400, "This host name is not served here.", {}
        if len(scope["path"]) > PATH_LIMIT or len(scope["query_string"]) > QUERY_LIMIT:
            return 414, "The address is too long.", {}
        if "\x00" in scope["path"]:
            return 400, "The address has a character that no address has.", {}
        length = header(scope, b"content-length")
        if length and (not length.isascii() or not length.isdigit()):
            return 400, "The length of the body is not a number.", {}
        if length and int(length[:20]) > self.settings.body_limit:
            return 413, f"The body may have {self.settings.body_limit} bytes.", {}
        what = limited(scope["method"], scope["path"], scope["query_string"])
        if what is not None and (seconds := self.limiter.wait(what, (scope.get("client") or ("",))[0])):
            return 429, "Too many requests; please wait a little.", {"retry-after": str(int(seconds) + 1)}
        return None

    def _bounded(self, receive: Receive) -> Receive:
        limit, had = self.settings.body_limit, 0

        async def counted() -> Message:
            nonlocal had
            message = await receive()
            had += len(message.get("body", b""))
            if had > limit:
                raise HTTPException(413, f"The body may have {limit} bytes.")
            return message

        return counted


def _host_name(host: str) -> str:
    """The name in a Host header, in lower case, without its port."""
    host = host.strip().lower()
    return host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]


class Tokens:
    """Form tokens and the owner's session, signed with the site's secret."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.visitor_cookie = "__Host-visitor" if settings.https else "visitor"
        self.owner_cookie = "__Host-owner" if settings.https else "owner"
        self.placeholder = f"form-token-{secrets.token_urlsafe(32)}"
        """Stands in a rendered page where the reader's own token goes."""

    def sign(self, purpose: str, text: str) -> str:
        """A signature of `text` for one purpose, 64 hexadecimal digits."""
        key = self.settings.secret.encode()
        return hmac.new(key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()

    def visitor(self, scope: Scope) -> str:
        """The random value that the reader's cookie holds; empty for one who has none."""
        found = cookie(scope, self.visitor_cookie)
        return found if 32 <= len(found) <= 64 and found.replace("-", "").replace("_", "").isalnum() else ""

    def form_token(self, visitor: str) -> str:
        """The token that a form of this reader has to carry."""
        return self.sign("form", visitor)

    def person(self, visitor: str) -> str:
        """The name under which a reader's votes are kept: not the cookie itself."""
        return f"web:{self.sign('person', visitor)[:32]}"

    def set_visitor(self, visitor: str) -> str:
        """The Set-Cookie header that gives a reader the random value."""
        return self._cookie(self.visitor_cookie, visitor, "Lax", VISITOR_SECONDS)

    def set_owner(self, now: float) -> str:
        """The Set-Cookie header of the owner's session."""
        until = str(int(now) + OWNER_SECONDS)
        return self._cookie(self.owner_cookie, f"{until}.{self._session(until)}", "Strict", OWNER_SECONDS)

    def forget_owner(self) -> str:
        """The Set-Cookie header that ends the owner's session."""
        return self._cookie(self.owner_cookie, "", "Strict", 0)

    def _cookie(self, name: str, value: str, same_site: str, seconds: int) -> str:
        secure = "; Secure" if self.settings.https else ""
        return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite={same_site}{secure}"

    def _session(self, until: str) -> str:
        # Another token of the owner ends the sessions begun with the one before.
        return self.sign("owner", f"{until}\n{self.settings.owner_token}")

    def is_owner_token(self, token: str) -> bool:
        """Whether it is the owner's, compared in constant time."""
        own = self.settings.owner_token
        return own is not None and hmac.compare_digest(token.encode(), own.encode())

    def is_owner(self, scope: Scope, now: float) -> bool:
        """Whether the request carries the owner's token (``Authorization: Bearer``) or a session made with it."""
        if self.settings.owner_token is None:
            return False
        scheme, _, token = header(scope, b"authorization").partition(" ")
        if scheme.lower() == "bearer" and self.is_owner_token(token.strip()):
            return True
        until, _, signature = cookie(scope, self.owner_cookie).partition(".")
        if not until.isascii() or not until.isdigit() or len(until) > 12 or int(until) < now:
            return False
        return hmac.compare_digest(signature.encode(), self._session(until).encode())


def tokens_of(request: HTTPConnection) -> Tokens:
    """The signer of the site that serves the request."""
    found: Tokens = request.app.state.tokens
    return found


def is_owner(request: HTTPConnection) -> bool:
    """Whether the request comes from the owner."""
    return tokens_of(request).is_owner(request.scope, request.app.state.site.now().timestamp())


def check_origin(request: Request) -> None:
    """Raises HTTPException (403) for a request that another site's page made."""
    origin = request.headers.get("origin")
    if origin is not None:
        sent, own = urlsplit(origin), request.app.state.site.settings.base_url
        if origin != own and (sent.scheme not in ("http", "https") or sent.netloc != request.headers.get("host")):
            raise HTTPException(403, "The form was sent from another site.")
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise HTTPException(403, "The form was sent from another site.")


async def form_fields(request: Request) -> dict[str, Any]:
    """The text fields of a form: a field given once as its text, a field given several times as a list.

    Raises HTTPException: 415 for another kind of body, 400 for one that cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        raise HTTPException(415, "Wanted the fields of a form.")
    try:
        async with request.form(max_files=0, max_fields=64) as sent:
            pairs = [(name, value) for name, value in sent.multi_items() if isinstance(value, str)]
    except HTTPException:
        raise
    except (ValueError, UnicodeError) as error:
        raise HTTPException(400, "The form cannot be read.") from error
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            fields[name] = [*(fields[name] if isinstance(fields[name], list) else [fields[name]]), value]
        else:
            fields[name] = value
    return fields


async def own_form(request: Request) -> dict[str, Any]:
    """The fields of a form that one of the site's own pages gave to this reader.

    Raises HTTPException: 403 for a form from elsewhere or without the reader's token, and as `form_fields` does.
    """
    check_origin(request)
    fields = await form_fields(request)
    tokens = tokens_of(request)
    visitor, sent = tokens.visitor(request.scope), fields.pop("csrf", "")
    if not visitor or not isinstance(sent, str):
        raise HTTPException(403, "This form needs the cookie that came with its page. Load the page again.")
    if not hmac.compare_digest(sent.encode(), tokens.form_token(visitor).encode()):
        raise HTTPException(403, "This form is no longer valid. Load its page again.")
    return fields
