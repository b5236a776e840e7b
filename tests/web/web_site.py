"""A small site with papers of every state, and a reader who fills in its forms, for the tests of the pages."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from email.message import EmailMessage
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from lab.report_sample import MACHINE, sample_papers, sample_store
from starlette.testclient import TestClient

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.lab import registry
from paperworks.web import Settings, create_app
from paperworks.web.settings import RATES, Rate

FRIDAY = date(2026, 4, 24)
NOW = datetime(2026, 4, 24, 18, 30, tzinfo=UTC)
TOKEN = "the token of the owner"
HOSTILE = "<script>alert(1)</script> & \"quotes\" 'n' {{ 7 * 7 }}"


class Outbox(list[EmailMessage]):
    """A transport that keeps what it is given."""

    def send(self, message: EmailMessage) -> None:
        self.append(message)


def fill(store: Path | str) -> None:
    """A store with the sample's verdicts, an announced paper, and papers that only the feed knows."""
    if isinstance(store, Path):
        store.write_bytes(_filled())
    else:
        _fill(store)


@lru_cache(maxsize=1)
def _filled() -> bytes:
    """The file of that store, made once."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "site.sqlite"
        _fill(path)
        return path.read_bytes()


def _fill(url: Path | str) -> None:
    with Store(url) as store:
        memory = sample_store()
        store.lab.put_machine(MACHINE)
        for spec, result in memory.known.values():
            store.lab.put_trial(spec, result)
        for verdict in memory.verdicts:
            store.lab.put_verdict(verdict)
        first = memory.keep("ash", "parameters", "fails", kind="exact", seconds=1.0)
        store.lab.put_verdict(replace(first, created=datetime(2025, 11, 1, tzinfo=UTC)))
        daily = [
            PaperRecord("Stochastic Adaptive Activation Function", id="2210.11672", rank=0, upvotes=12, comments=3),
            PaperRecord(
                f"On {HOSTILE}", id="2604.00001", rank=1, abstract=f"We study {HOSTILE}.", authors=["A", HOSTILE],
                code="javascript:alert(1)", upvotes=5,
            ),
            PaperRecord("A plain one", id="2604.00002v3", rank=2, abstract="Plainly.", code="https://github.com/a/b"),
        ]  # fmt: skip
        store.add([replace(one, first_seen=FRIDAY, source="daily") for one in daily], NOW)
        store.add([PaperRecord("Of before arXiv ids were new", id="cs/0501001", published=date(2005, 1, 3))], NOW)
        store.vote("2210.11672", "somebody", NOW)


def cards() -> list[Any]:
    """The sample's cards, and an announced one."""
    return [*sample_papers(), registry.announced()[0]]


def make_app(folder: Path, **changes: Any) -> Any:
    """The site over a store in `folder`; without a limit of the rates that matters, unless `changes` has rates."""
    path = folder / "site.sqlite"
    if not path.exists():
        fill(path)
    given: dict[str, Any] = {
        "store": path,
        "secret": "a secret of the tests",
        "base_url": "http://testserver",
        "transport": Outbox(),
        "owner_token": TOKEN,
        "now": lambda: NOW,
        "rates": dict.fromkeys(RATES, Rate(10**6, 10**6)),
    }
    with (
        patch.object(registry, "papers", lambda area=None: iter(sample_papers())),
        patch.object(registry, "catalogue", cards),
    ):
        return create_app(Settings(**{**given, **changes}))


class Reader(TestClient):
    """A browser without scripts: keeps cookies and sends forms as a page gives them."""

    def page(self, path: str, status: int = 200) -> str:
        """The page at a path, whose status has to be that."""
        answer = self.get(path)
        assert answer.status_code == status, answer.text[:500]
        return answer.text

    def fill_in(self, path: str, fields: dict[str, Any], action: str | None = None) -> Any:
        """Load a page, fill in its form of that action, send it as a browser does; the answer, not followed."""
        page = self.page(path)
        target = action or path
        forms = re.findall(r'<form[^>]*method="post"[^>]*>.*?</form>', page, re.DOTALL)
        form = next(one for one in forms if f'action="{target}"' in one or 'action="' not in one)
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))
        headers = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
        return self.post(target, data={**hidden, **fields}, headers=headers, follow_redirects=False)

    def sign_in(self) -> None:
        """Become the owner."""
        assert self.fill_in("/owner", {"token": TOKEN}).status_code == 303


class Outline(HTMLParser):
    """What of a page the tests look at: tags with attributes, ids, headings, and whether every tag is closed."""

    VOID = frozenset(("meta", "link", "input", "br", "hr", "img", "circle", "path", "rect", "line"))

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.unclosed: list[str] = []
        self.feed(page)
        self.unclosed += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.unclosed.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every tag of that name."""
        return [attributes for name, attributes in self.tags if name == tag]
