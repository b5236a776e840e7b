"""A small catalogue, its readers and transports that keep or lose what they are given, for the tests of the digest."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from typing import Any

from sqlalchemy import select

from paperworks.feed.digest import Digest
from paperworks.feed.records import PaperRecord
from paperworks.feed.search import Search
from paperworks.feed.store import Store
from paperworks.feed.subscriptions import Subscriber, Subscriptions
from paperworks.feed.tables import deliveries
from paperworks.feed.verdicts import Verdicts

NOW = datetime(2026, 4, 24, 9, 30, tzinfo=UTC)  # a Friday
TODAY = date(2026, 4, 24)
DAY = timedelta(days=1)
SITE = "https://papers.example.org"
SENDER = "paperworks <papers@example.org>"


class Kept:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[EmailMessage] = []

    def send(self, message: EmailMessage) -> None:
        self.sent.append(message)

    @property
    def recipients(self) -> list[str]:
        return [message["To"].addresses[0].addr_spec for message in self.sent]


class World:
    """A store with readers, closed by `close`."""

    def __init__(self, url: str, verdicts: Verdicts | None = None) -> None:
        self.store, self.readers = Store(url), 0
        self.people = Subscriptions(self.store, "secret")
        self.digest = Digest(
            self.store,
            Search(self.store),
            self.people,
            base_url=SITE,
            sender=SENDER,
            verdicts=Verdicts(self.store, cards=()) if verdicts is None else verdicts,
        )

    def close(self) -> None:
        self.store.close()

    def reader(self, name: str = "reader", at: datetime | None = None, **preferences: Any) -> Subscriber:
        """Confirmed a month ago, each a minute after the one before, so that their order is known."""
        self.readers += 1
        at = NOW - 30 * DAY + timedelta(minutes=self.readers) if at is None else at
        token = self.people.request(f"{name}@example.org", at)
        assert token is not None
        subscriber = self.people.confirm(token, at)
        return self.people.preferences(subscriber, **preferences) if preferences else subscriber

    def paper(self, number: int, title: str = "", day: date | None = TODAY, **facts: Any) -> PaperRecord:
        record = PaperRecord(
            title or f"Paper {number} of many", id=f"2604.{number:05}", first_seen=day, source="daily", **facts
        )
        self.store.add([record], NOW - 60 * DAY)
        return record

    def ids(self, message: EmailMessage | None) -> list[str]:
        """The ids of the papers in a digest, in its order."""
        lines = [] if message is None else text_of(message).splitlines()
        return [line.rsplit("/", 1)[1] for line in lines if "/paper/" in line]

    def rows(self) -> list[tuple[str, str]]:
        """Period and status of all rows of the book."""
        with self.store.database.read() as connection:
            query = select(deliveries.c.period, deliveries.c.status).order_by(deliveries.c.id)
            return [(period, status) for period, status in connection.execute(query)]


def statuses(told: Iterable[Any]) -> dict[str, str]:
    """What became of the digest of each reader, by name."""
    return {one.email.partition("@")[0]: one.status for one in told}


def text_of(message: EmailMessage | None, kind: str = "plain") -> str:
    assert message is not None
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


def flat(message: EmailMessage | None) -> str:
    return " ".join(text_of(message).split())
