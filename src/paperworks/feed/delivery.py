"""The book of what was sent: one row a subscriber and period, written before the message goes out.

A row is `sending` from before the message is sent until its outcome is known, so a crash in between leaves it there.
Whether that message went out nobody knows: it is not sent again, the next run says so, and its papers count as sent.
"""

from __future__ import annotations

import contextlib
import os
import smtplib
import socket
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, delete, select, update

from paperworks.feed.mail import Refused, Unavailable
from paperworks.feed.preferences import Preferences
from paperworks.feed.ranking import check_aware
from paperworks.feed.store import Store
from paperworks.feed.tables import deliveries, subscribers

__all__ = ["BOUNCES", "Delivery", "Ledger", "Outcome", "due_period", "outcome"]

BOUNCES = 3
"""Digests in a row for which the server refused the mailbox, after which the address is suppressed."""

_MAILBOX, _UNKNOWN = "mailbox: ", "unknown: "

Outcome = Literal["sent", "failed", "later", "unknown", "dry run"]


@dataclass(frozen=True)
class Delivery:
    """What became of one digest.

    Attributes:
        subscriber: id. email: their address.
        period: ``2026-04-24`` or ``2026-W17``.
        status: ``sent``; ``failed``: refused for good, not tried again for this period; ``later``: not sent, a later
            run tries again; ``unknown``: sent or not, nobody knows, and not sent again; ``dry run``: written to a file.
        message_id: of the message.
        papers: ids of the papers in it.
        reason: for all but ``sent``.
    """

    subscriber: str
    email: str
    period: str
    status: Outcome
    message_id: str = ""
    papers: tuple[str, ...] = ()
    reason: str = ""


def due_period(preferences: Preferences, now: datetime, confirmed: datetime | None = None) -> str | None:
    """The period whose digest is due at `now`: the latest that has begun at the subscriber's hour, in their zone.

    A daily period is a day (``2026-04-24``), a weekly one an ISO week (``2026-W17``) that begins on Monday. One that
    began on an earlier day is caught up on, unless the subscriber confirmed after its beginning: None then.

    Raises ValueError for a naive time.
    """
    check_aware("now", now)
    local = now.astimezone(preferences.zone)
    begun = local.date() if local.hour >= preferences.hour else _before(local.date(), 1)
    weekly = preferences.frequency == "weekly"
    first = _before(begun, begun.weekday()) if weekly else begun
    this_one = first == (_before(local.date(), local.weekday()) if weekly else local.date())
    if not this_one and confirmed is not None and confirmed > _moment(first, preferences.hour, preferences.zone):
        return None
    year, week, _ = first.isocalendar()
    return f"{year:04}-W{week:02}" if weekly else first.isoformat()


def _before(day: date, days: int) -> date:
    return day - timedelta(days=days) if day.toordinal() > days else day


def _moment(day: date, hour: int, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(hour), zone)


def outcome(error: Exception) -> tuple[Outcome, str]:
    """What is known of a message after its transport raised `error`: ``failed``, ``later`` or ``unknown``, and why.

    ``later`` only where it is certain that nothing went out: our own transport says so, the server answered 4xx, or
    there was no connection. What another transport raised may have come after the message.
    """
    reason = str(error) or type(error).__name__
    if isinstance(error, Refused):
        return ("failed" if error.permanent else "later"), (_MAILBOX if error.mailbox else "") + reason
    if isinstance(error, Unavailable | ConnectionRefusedError | socket.gaierror | smtplib.SMTPConnectError):
        return "later", reason
    codes: list[int] = []
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        reason = "; ".join(f"{code} {text.decode(errors='replace')}" for code, text in error.recipients.values())
    elif isinstance(error, smtplib.SMTPAuthenticationError | smtplib.SMTPHeloError):
        return "later", reason
    elif isinstance(error, smtplib.SMTPResponseException) and 400 <= error.smtp_code < 600:
        codes = [error.smtp_code]
    if not codes:
        return "unknown", f"{type(error).__name__}: {reason}"
    permanent = all(code >= 500 for code in codes)
    mailbox = permanent and isinstance(error, smtplib.SMTPRecipientsRefused)
    return ("failed" if permanent else "later"), (_MAILBOX if mailbox else "") + reason


class Ledger:
    """The rows of `deliveries`. Processes may share it: of two that claim a digest, one gets it."""

    def __init__(self, store: Store) -> None:
        self.database = store.database

    def claim(self, subscriber: str, period: str, message_id: str, papers: list[int], now: datetime) -> int | None:
        """The number of a new row, on disk before this returns.

        None where there is one for the period, where another run has sent one of the papers meanwhile, or where the
        subscriber is not active any more.
        """

        def keep(connection: Connection) -> int | None:
            status = select(subscribers.c.status).where(subscribers.c.id == subscriber).with_for_update()
            if connection.scalar(status) != "active" or self._gone(connection, subscriber)[1] & set(papers):
                return None
            row = self.database.insert(deliveries).values(
                subscriber=subscriber, period=period, status="sending", message_id=message_id, papers=papers,
                reason="", started=now,
            )  # fmt: skip
            made = row.on_conflict_do_nothing(index_elements=["subscriber", "period"]).returning(deliveries.c.id)
            number = connection.scalar(made)
            return None if number is None else int(number)

        found = self.database.write(keep)
        if found is not None:
            self._sync()
        return found

    def sent(self, row: int, now: datetime) -> None:
        """The message of a row was taken by the server."""
        self._close(row, "sent", "", now)

    def failed(self, row: int, reason: str, now: datetime) -> None:
        """The message of a row was refused for good, or (``unknown``) has no known outcome."""
        self._close(row, "failed", reason, now)

    def uncertain(self, row: int, reason: str, now: datetime) -> None:
        """Nobody knows whether the message of a row was delivered."""
        self._close(row, "failed", _UNKNOWN + reason, now)

    def release(self, row: int) -> None:
        """The message of a row was not sent: a later run may."""
        self.database.write(lambda connection: connection.execute(delete(deliveries).where(deliveries.c.id == row)))

    def has(self, subscriber: str, period: str) -> bool:
        """Whether there is a row for the period."""
        query = select(deliveries.c.id).where(deliveries.c.subscriber == subscriber, deliveries.c.period == period)
        with self.database.read() as connection:
            return connection.scalar(query) is not None

    def interrupted(self, subscriber: str, email: str, now: datetime) -> list[Delivery]:
        """The digests of a subscriber that a run left as `sending`, each told once, and kept as unknown."""
        reason = "the run ended before the outcome was kept, or is under way"

        def keep(connection: Connection) -> list[Delivery]:
            this = (deliveries.c.subscriber == subscriber) & (deliveries.c.status == "sending")
            changes = {"status": "failed", "reason": _UNKNOWN + reason, "finished": now}
            query = (
                update(deliveries).where(this).values(**changes).returning(deliveries.c.period, deliveries.c.message_id)
            )
            rows = connection.execute(query).all()
            return [Delivery(subscriber, email, row.period, "unknown", row.message_id, reason=reason) for row in rows]

        with self.database.read() as connection:
            this = (deliveries.c.subscriber == subscriber) & (deliveries.c.status == "sending")
            if connection.scalar(select(deliveries.c.id).where(this)) is None:
                return []
        return self.database.write(keep)

    def delivered(self, subscriber: str) -> tuple[datetime | None, set[int]]:
        """When the last digest was sent, and the numbers of all papers that were, those of unknown outcome included."""
        with self.database.read() as connection:
            return self._gone(connection, subscriber)

    @staticmethod
    def _gone(connection: Connection, subscriber: str) -> tuple[datetime | None, set[int]]:
        gone = deliveries.c.status.in_(("sending", "sent")) | deliveries.c.reason.startswith(_UNKNOWN, autoescape=True)
        query = select(deliveries.c.started, deliveries.c.papers).where(deliveries.c.subscriber == subscriber, gone)
        rows = connection.execute(query).all()
        last = max((row.started for row in rows), default=None)
        return last, {number for row in rows for number in row.papers}

    def bounced(self, subscriber: str) -> bool:
        """Whether the mailbox was refused for the last `BOUNCES` digests."""
        query = select(deliveries.c.status, deliveries.c.reason).where(deliveries.c.subscriber == subscriber)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(deliveries.c.id.desc()).limit(BOUNCES)).all()
        refused = [row for row in rows if row.status == "failed" and row.reason.startswith(_MAILBOX)]
        return len(refused) == BOUNCES

    def _close(self, row: int, status: str, reason: str, now: datetime) -> None:
        values = {"status": status, "reason": reason, "finished": now}
        query = update(deliveries).where(deliveries.c.id == row).values(**values)
        self.database.write(lambda connection: connection.execute(query))

    def _sync(self) -> None:
        """SQLite's log reaches the disk when it likes; a claim has to outlive a power failure."""
        if self.database.engine.name != "sqlite":
            return
        with contextlib.suppress(FileNotFoundError):  # the log was written back and removed meanwhile
            log = os.open(f"{self.database.location}-wal", os.O_RDWR)
            try:
                os.fsync(log)
            finally:
                os.close(log)
