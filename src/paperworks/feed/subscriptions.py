"""Who gets the digest: asked for, confirmed by mail, and ended by one click.

An address is *pending* until the token that was mailed to it comes back, *active* then, *unsubscribed* by its own link,
and *suppressed* after bounces or a complaint. A stranger who types in an address learns nothing of its state: `request`
is answered alike, and only what is mailed differs.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from paperworks.feed.addresses import checked_address, one_line
from paperworks.feed.preferences import Preferences
from paperworks.feed.ranking import check_aware
from paperworks.feed.store import Store
from paperworks.feed.tables import subscribers, tokens
from paperworks.lab.records import now as current_time

__all__ = ["Preferences", "Subscriber", "Subscriptions", "Suppressed"]

TOKEN_LIFE = timedelta(hours=48)
TOKENS_A_DAY = 3
"""Confirmation mails that one address may be sent in 24 hours."""

FORGOTTEN = timedelta(days=30)
"""After which an address that was never confirmed is deleted."""

_CONFIRM = "confirm"
_ID_CHARACTERS = 32  # hexadecimal, of 16 random bytes


@dataclass(frozen=True)
class Subscriber:
    """Someone who asked for the digest.

    Attributes:
        id: random, without meaning.
        email: as `checked_address` spells it.
        unsubscribe_token: for their link; always the same.
        preferences: what they want.
        status: ``pending``, ``active`` or ``unsubscribed``.
        confirmed: when they last confirmed; None before.
    """

    id: str
    email: str
    unsubscribe_token: str
    preferences: Preferences
    status: str = "active"
    confirmed: datetime | None = None


@dataclass(frozen=True)
class Suppressed:
    """An address that nothing is sent to, and why."""

    email: str
    reason: str
    at: datetime


class Subscriptions:
    """The subscribers in a store. Threads and processes may share it.

    Args:
        store: the catalogue.
        secret: key of the unsubscribe tokens, bytes or text. With another secret the links in mails already sent end.

    Raises ValueError for an empty secret.
    """

    def __init__(self, store: Store, secret: str | bytes) -> None:
        if not isinstance(secret, str | bytes):
            raise TypeError(f"secret: got {type(secret).__name__}, wanted text or bytes")
        if not secret:
            raise ValueError("secret: got an empty one, wanted a random text that is kept")
        self.store = store
        self._secret = secret.encode() if isinstance(secret, str) else secret

    def request(self, email: str, now: datetime | None = None) -> str | None:
        """The token to be mailed to an address that asks for the digest; it voids the one before it.

        None where nothing is to be mailed: the address is subscribed already, is suppressed, or was sent three tokens
        in the last 24 hours. Whoever asked is answered the same in all cases.

        Raises ValueError for a malformed address or a naive time.
        """
        address, moment = checked_address(email), _moment(now)
        token = secrets.token_urlsafe(32)

        def keep(connection: Connection) -> str | None:
            self._forget(connection, moment)
            row = self._row_of(connection, address, moment)
            if row.status in ("active", "suppressed"):
                return None
            mine = tokens.c.subscriber == row.id
            recent = mine & (tokens.c.expires > moment + TOKEN_LIFE - timedelta(days=1))
            if (connection.scalar(select(func.count()).where(recent)) or 0) >= TOKENS_A_DAY:
                return None
            connection.execute(update(tokens).where(mine, tokens.c.used.is_(None)).values(used=moment))
            values = {"subscriber": row.id, "purpose": _CONFIRM, "expires": moment + TOKEN_LIFE}
            connection.execute(insert(tokens).values(digest=_digest(token), **values))
            connection.execute(update(subscribers).where(subscribers.c.id == row.id).values(changed=moment))
            return token

        return self.store.database.write(keep)

    def confirm(self, token: str, now: datetime | None = None) -> Subscriber:
        """The subscriber whose mailed token this is, active from now on. A token serves once, for 48 hours.

        Raises ValueError for a token that is unknown, used, voided by a later one or expired, and for a naive time.
        """
        if not isinstance(token, str):
            raise TypeError(f"token: got {type(token).__name__}, wanted a string")
        digest, moment = _digest(token), _moment(now)

        def keep(connection: Connection) -> Subscriber:
            query = select(tokens).where(tokens.c.digest == digest, tokens.c.purpose == _CONFIRM).with_for_update()
            kept = connection.execute(query).one_or_none()
            if (
                kept is None
                or not hmac.compare_digest(kept.digest.encode(), digest.encode())
                or kept.used is not None
                or kept.expires <= moment
            ):
                raise ValueError("token: unknown, used or expired; ask for a new one")
            this = subscribers.c.id == kept.subscriber
            row = connection.execute(select(subscribers).where(this).with_for_update()).one()
            if row.status == "suppressed":
                raise ValueError("token: its address is not sent mail any more")
            connection.execute(update(tokens).where(tokens.c.digest == digest).values(used=moment))
            changes = {"status": "active", "confirmed": moment, "changed": moment}
            connection.execute(update(subscribers).where(this).values(**changes))
            return self._subscriber(connection.execute(select(subscribers).where(this)).one())

        return self.store.database.write(keep)

    def unsubscribe(self, token: str, now: datetime | None = None) -> bool:
        """End the subscription of an unsubscribe token, at once. True for a genuine token, also when repeated."""
        id = self._genuine(token)
        if id is None:
            return False
        moment = _moment(now)

        def keep(connection: Connection) -> None:
            this = (subscribers.c.id == id) & subscribers.c.status.in_(("active", "pending"))
            connection.execute(update(subscribers).where(this).values(status="unsubscribed", changed=moment))
            open_tokens = (tokens.c.subscriber == id) & tokens.c.used.is_(None)
            connection.execute(update(tokens).where(open_tokens).values(used=moment))

        self.store.database.write(keep)
        return True

    def find(self, unsubscribe_token: str) -> Subscriber | None:
        """The subscriber of an unsubscribe token, whatever their status unless suppressed; None for a forged one."""
        id = self._genuine(unsubscribe_token)
        if id is None:
            return None
        query = select(subscribers).where(subscribers.c.id == id, subscribers.c.status != "suppressed")
        with self.store.database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else self._subscriber(row)

    def active(self) -> list[Subscriber]:
        """Those who are sent the digest, in the order in which they first asked."""
        query = select(subscribers).where(subscribers.c.status == "active")
        with self.store.database.read() as connection:
            rows = connection.execute(query.order_by(subscribers.c.created, subscribers.c.id)).all()
        return [self._subscriber(row) for row in rows]

    def preferences(self, subscriber: Subscriber, **changes: Any) -> Subscriber:
        """The subscriber with some preferences replaced and kept; the names are those of `Preferences`.

        Raises ValueError for an unknown name, a value that is refused, or a subscriber who is unknown or suppressed.
        """
        this = (subscribers.c.id == subscriber.id) & (subscribers.c.status != "suppressed")

        def keep(connection: Connection) -> Subscriber:
            row = connection.execute(select(subscribers).where(this).with_for_update()).one_or_none()
            if row is None:
                raise ValueError(f"subscriber: got {subscriber.id!r}, who is not known or suppressed")
            found = Preferences.from_mapping(row.preferences).changed(changes)
            values = {"preferences": found.to_mapping(), "changed": current_time()}
            connection.execute(update(subscribers).where(this).values(**values))
            return self._subscriber(connection.execute(select(subscribers).where(this)).one())

        return self.store.database.write(keep)

    # bounces and complaints

    def suppress(self, email: str, reason: str, now: datetime | None = None) -> None:
        """Send nothing more to an address, known or not, because mail to it bounced or was complained about.

        Neither a request nor a token that is still out ends that; `release` does. Raises ValueError for a malformed
        address.
        """
        address, moment, why = checked_address(email), _moment(now), one_line(reason)

        def keep(connection: Connection) -> None:
            row = self._row_of(connection, address, moment)
            values = {**row.preferences, "suppressed": why}
            this = subscribers.c.id == row.id
            changes = {"status": "suppressed", "preferences": values, "changed": moment}
            connection.execute(update(subscribers).where(this).values(**changes))

        self.store.database.write(keep)

    def release(self, email: str, now: datetime | None = None) -> bool:
        """Let a suppressed address ask again; it has to confirm anew. False where it was not suppressed."""
        address, moment = checked_address(email), _moment(now)

        def keep(connection: Connection) -> bool:
            this = (subscribers.c.email == address) & (subscribers.c.status == "suppressed")
            row = connection.execute(select(subscribers).where(this).with_for_update()).one_or_none()
            if row is None:
                return False
            values = {name: value for name, value in row.preferences.items() if name != "suppressed"}
            changes = {"status": "unsubscribed", "preferences": values, "changed": moment}
            connection.execute(update(subscribers).where(this).values(**changes))
            return True

        return self.store.database.write(keep)

    def suppressed(self) -> list[Suppressed]:
        """The addresses that nothing is sent to, by address."""
        query = select(subscribers).where(subscribers.c.status == "suppressed").order_by(subscribers.c.email)
        with self.store.database.read() as connection:
            rows = connection.execute(query).all()
        return [Suppressed(row.email, row.preferences.get("suppressed", ""), row.changed) for row in rows]

    # rows

    def _row_of(self, connection: Connection, address: str, moment: datetime) -> Row[Any]:
        """The locked row of an address, made as pending where there is none."""
        new = {"id": secrets.token_hex(_ID_CHARACTERS // 2), "email": address, "status": "pending", "preferences": {}}
        row = self.store.database.insert(subscribers).values(**new, created=moment, changed=moment)
        connection.execute(row.on_conflict_do_nothing(index_elements=["email"]))
        return connection.execute(select(subscribers).where(subscribers.c.email == address).with_for_update()).one()

    @staticmethod
    def _forget(connection: Connection, moment: datetime) -> None:
        """Delete the addresses that never confirmed, and tokens that no longer say how many were sent."""
        stale = (subscribers.c.status == "pending") & (subscribers.c.changed < moment - FORGOTTEN)
        connection.execute(delete(subscribers).where(stale))
        connection.execute(delete(tokens).where(tokens.c.expires < moment - FORGOTTEN))

    def _subscriber(self, row: Row[Any]) -> Subscriber:
        preferences = Preferences.from_mapping(row.preferences)
        return Subscriber(row.id, row.email, self._token(row.id), preferences, row.status, row.confirmed)

    def _token(self, id: str) -> str:
        signature = hmac.new(self._secret, b"unsubscribe:" + id.encode(), hashlib.sha256).digest()
        return id + urlsafe_b64encode(signature).decode().rstrip("=")

    def _genuine(self, token: str) -> str | None:
        """The subscriber id in an unsubscribe token; None for a forged one."""
        if not isinstance(token, str):
            raise TypeError(f"token: got {type(token).__name__}, wanted a string")
        id = token[:_ID_CHARACTERS]
        right = self._token(id).encode() if id.isascii() else b""
        return id if hmac.compare_digest(token.encode("utf-8", "surrogatepass"), right) else None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _moment(now: datetime | None) -> datetime:
    if now is None:
        return current_time()
    check_aware("now", now)
    return now
