"""What an operator decides about the site."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from paperworks.lab.records import now as clock

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Rate:
    """A token bucket: `burst` requests at once, refilled with `per_minute`."""

    burst: int
    per_minute: float

    def __post_init__(self) -> None:
        if self.burst < 1 or self.per_minute <= 0:
            raise ValueError(f"rate: got {self.burst} and {self.per_minute}, wanted both above 0")


RATES: Mapping[str, Rate] = MappingProxyType(
    {
        "search": Rate(60, 120),
        "subscribe": Rate(6, 2),
        "vote": Rate(20, 20),
        "owner": Rate(6, 3),
    }
)
"""For each client address and worker process."""


@dataclass(frozen=True)
class Settings:
    """Of one site.

    Attributes:
        store: path or URL of the database; None for the lab's default.
        secret: signs tokens and cookies. Workers and restarts have to share it; empty for a random one.
        base_url: address under which readers reach the site, for mails and feeds; ``http(s)://host[:port]``.
        transport: what sends mail, an object with ``send(message)``; without one no mail is sent.
        owner_token: what lets the owner in; None switches the owner's pages off.
        host: address that the server binds.
        allow_runs: whether the owner may start runs; None allows it on a loopback `host` only.
        catalogue: whether the cards of all papers are put into the store at the start.
        sender: the address mails come from.
        now: the clock; returns timezone-aware times.
        embedder: the model of search by meaning; None for search's default.
        rates: token buckets by what they limit, over `RATES`.
        hosts: further names under which the site is reached.
        body_limit: largest body of a request in bytes.
        fresh_seconds: how old the look-up of what changed in the database may be, where asking costs a query.
        proxy_headers: whether the client's address is taken from the headers of a proxy on this machine.
    """

    store: str | Path | None = None
    secret: str = field(default="", repr=False)
    base_url: str = "http://127.0.0.1:8000"
    transport: Any = None
    owner_token: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    allow_runs: bool | None = None
    catalogue: bool = True
    sender: str = "paperworks <papers@localhost>"
    now: Callable[[], datetime] = clock
    embedder: Any = None
    rates: Mapping[str, Rate] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    body_limit: int = 64 * 1024
    fresh_seconds: float = 1.0
    proxy_headers: bool = False

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.path.strip("/"):
            raise ValueError(f"base_url: got {self.base_url!r}, wanted http://host or https://host, without a path")
        if unknown := self.rates.keys() - RATES.keys():
            raise ValueError(f"rates: got {', '.join(sorted(unknown))}, wanted of {', '.join(RATES)}")
        if self.owner_token is not None and not self.owner_token:
            raise ValueError("owner_token: got an empty text, wanted a token or None")
        if self.body_limit < 1:
            raise ValueError(f"body_limit: got {self.body_limit}, wanted a number of bytes above 0")
        object.__setattr__(self, "base_url", f"{address.scheme}://{address.netloc}")
        object.__setattr__(self, "secret", self.secret or secrets.token_hex(32))
        object.__setattr__(self, "rates", {**RATES, **self.rates})

    @property
    def https(self) -> bool:
        """Whether readers come by https."""
        return self.base_url.startswith("https:")

    @property
    def runs_allowed(self) -> bool:
        """Whether an owner may start runs from the page."""
        local = self.host in LOOPBACK
        return self.owner_token is not None and (local if self.allow_runs is None else self.allow_runs)

    @property
    def served_hosts(self) -> frozenset[str]:
        """Names and addresses, in lower case and without port, that a request may be addressed to."""
        own = urlsplit(self.base_url).hostname or ""
        return frozenset(name.lower() for name in (own, self.host, *LOOPBACK, "testserver", *self.hosts))
