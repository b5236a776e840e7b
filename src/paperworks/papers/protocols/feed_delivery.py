"""A digest run that is killed at a given mail, and the run after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

from sqlalchemy import select

from paperworks.data.synthetic_papers import synthetic_papers
from paperworks.feed import Digest, PaperRecord, Search, Store, Subscriptions
from paperworks.feed.delivery import Delivery
from paperworks.feed.tables import deliveries, subscribers

__all__ = ["after_a_crash"]

NOW = datetime(2026, 4, 24, 18, 30, tzinfo=UTC)
SECRET = "a secret of this check"
BASE_URL = "https://papers.example"


class Mailbox:
    """A transport that hands a mail over by a line in a file, and dies at one of them, before or after."""

    def __init__(self, path: Path, die_at: int = 0, die: str = "") -> None:
        self.path, self.die_at, self.die, self.number = path, die_at, die, 0

    def send(self, message: EmailMessage) -> None:
        self.number += 1
        self._die_here("before")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{message['To']}\n")
            file.flush()
            os.fsync(file.fileno())
        self._die_here("after")

    def _die_here(self, where: str) -> None:
        if self.number == self.die_at and self.die == where:
            os.kill(os.getpid(), signal.SIGKILL)


def send_all(store_path: Path, mailbox: Mailbox, now: datetime = NOW) -> list[Delivery]:
    """Send what is due to every subscriber."""
    with Store(store_path) as store:
        subscriptions = Subscriptions(store, SECRET)
        digest = Digest(store, Search(store), subscriptions, base_url=BASE_URL, sender="Papers <papers@papers.example>")
        return digest.send(mailbox, now)


def main(store_path: str, mailbox: str, die_at: str, die: str) -> None:
    """`send_all` in a process that dies on the way."""
    send_all(Path(store_path), Mailbox(Path(mailbox), int(die_at), die))


def _prepare(path: Path, n_subscribers: int) -> None:
    with Store(path) as store:
        day = (NOW - timedelta(days=1)).date()
        store.add([PaperRecord(**facts, first_seen=day) for facts in synthetic_papers(12)], NOW - timedelta(hours=20))
        subscriptions = Subscriptions(store, SECRET)
        for number in range(n_subscribers):
            token = subscriptions.request(f"reader{number}@readers.example", NOW - timedelta(days=2))
            assert token is not None
            subscriptions.confirm(token, NOW - timedelta(days=2))


def _sent(mailbox: Path) -> Counter[str]:
    return Counter(mailbox.read_text(encoding="utf-8").split() if mailbox.exists() else [])


def _in_flight(store_path: Path) -> list[str]:
    """Addresses of the deliveries that were begun and have no outcome yet."""
    query = select(subscribers.c.email).join(deliveries, deliveries.c.subscriber == subscribers.c.id)
    with Store(store_path) as store, store.database.read() as connection:
        return list(connection.scalars(query.where(deliveries.c.status == "sending")))


def after_a_crash(die_at: int, die: str, n_subscribers: int = 8) -> dict[str, int]:
    """Send to all, killed `before` or `after` the mail number `die_at`; then twice more in the same period.

    Returns how many were mailed twice, how often one was flagged as of unknown outcome, and how often wrongly, how many
    of the others were mailed once, and how many get their mail the day after.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, mailbox = Path(folder) / "feed.sqlite", Path(folder) / "mails"
        _prepare(path, n_subscribers)
        call = f"from {__name__} import main; main(*__import__('sys').argv[1:])"
        arguments = [str(path), str(mailbox), str(die_at), die]
        died = subprocess.run([sys.executable, "-c", call, *arguments], capture_output=True, text=True, check=False)
        if died.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the run was to be killed, got exit status {died.returncode}: {died.stderr[-2000:]}")
        [hit] = _in_flight(path)
        runs = [send_all(path, Mailbox(mailbox), NOW + timedelta(minutes=minutes)) for minutes in (5, 10)]
        flagged = [one.email for run in runs for one in run if one.status == "unknown"]
        sent = _sent(mailbox)
        with Store(path) as store:
            more = [PaperRecord(**facts, first_seen=NOW.date()) for facts in list(synthetic_papers(18))[12:]]
            store.add(more, NOW + timedelta(hours=1))
        send_all(path, Mailbox(mailbox), NOW + timedelta(days=1))
        next_day = _sent(mailbox) - sent
    return {
        "mailed twice": sum(count > 1 for count in sent.values()),
        "flagged": len(flagged),
        "flagged, and not the one in flight": len(set(flagged) - {hit}),
        "others mailed once": sum(count == 1 for address, count in sent.items() if address != hit),
        "mailed the day after": len(next_day),
    }
