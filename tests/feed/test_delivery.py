"""When a digest is due, and what the book of deliveries keeps, on SQLite and on PostgreSQL."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from feed.digest_world import DAY, NOW, World
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.delivery import BOUNCES, Ledger, due_period, outcome
from paperworks.feed.mail import Refused, Unavailable, Uncertain
from paperworks.feed.preferences import Preferences


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("preferences", "now", "period"),
    [
        ({}, "2026-04-24T00:00", "2026-04-24"),
        ({}, "2026-04-23T23:59:59", "2026-04-23"),
        ({"hour": 8}, "2026-04-24T08:00", "2026-04-24"),
        ({"hour": 8}, "2026-04-24T23:59", "2026-04-24"),
        # New York is four hours behind in April, Tokyo nine ahead
        ({"hour": 8, "timezone": "America/New_York"}, "2026-04-24T12:00", "2026-04-24"),
        ({"hour": 22, "timezone": "America/New_York"}, "2026-04-25T02:00", "2026-04-24"),
        ({"hour": 8, "timezone": "Asia/Tokyo"}, "2026-04-23T23:00", "2026-04-24"),
        # the hour that is left out in spring, and that comes twice in autumn
        ({"hour": 2, "timezone": "Europe/Berlin"}, "2026-03-29T01:00", "2026-03-29"),
        ({"hour": 2, "timezone": "Europe/Berlin"}, "2026-10-25T00:30", "2026-10-25"),
        ({"hour": 2, "timezone": "Europe/Berlin"}, "2026-10-25T01:30", "2026-10-25"),
        ({"frequency": "weekly"}, "2026-04-24T09:00", "2026-W17"),
        ({"frequency": "weekly"}, "2026-04-20T00:00", "2026-W17"),
        ({"frequency": "weekly", "hour": 8}, "2026-04-26T23:00", "2026-W17"),
        # ISO weeks at the turn of the year
        ({"frequency": "weekly"}, "2024-12-30T12:00", "2025-W01"),
        ({"frequency": "weekly"}, "2027-01-03T12:00", "2026-W53"),
    ],
)
def test_the_period_that_is_due(preferences: dict[str, object], now: str, period: str) -> None:
    assert due_period(Preferences(**preferences), at(now), at("2026-04-24T00:00")) in (period, None)  # type: ignore[arg-type]
    assert due_period(Preferences(**preferences), at(now), at("2020-01-01T00:00")) == period  # type: ignore[arg-type]
    assert due_period(Preferences(**preferences), at(now)) == period  # type: ignore[arg-type]


def test_nothing_is_due_before_the_hour_to_one_who_confirmed_after_the_last() -> None:
    wanted = Preferences(hour=8)
    confirmed = at("2026-04-23T20:00")
    assert due_period(wanted, at("2026-04-23T20:00"), confirmed) == "2026-04-23"  # after that day's hour: at once
    assert due_period(wanted, at("2026-04-24T07:59"), confirmed) is None
    assert due_period(wanted, at("2026-04-24T08:00"), confirmed) == "2026-04-24"
    # whoever was there before is caught up with, should a run have been missed
    assert due_period(wanted, at("2026-04-24T07:59"), at("2026-04-23T07:59")) == "2026-04-23"


def test_weekly_begins_on_monday_at_the_hour() -> None:
    wanted = Preferences(frequency="weekly", hour=8, timezone="Europe/Berlin")
    monday = at("2026-04-20T06:00")  # eight in Berlin
    confirmed = monday - timedelta(hours=3)
    assert due_period(wanted, monday - timedelta(seconds=1), confirmed) is None
    assert due_period(wanted, monday, confirmed) == "2026-W17"
    assert due_period(wanted, monday + 6 * DAY, confirmed) == "2026-W17"
    assert due_period(wanted, monday + 7 * DAY, confirmed) == "2026-W18"


@given(
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC)),
    st.sampled_from(["UTC", "Asia/Kolkata", "Pacific/Kiritimati", "America/St_Johns", "Pacific/Pago_Pago"]),
    st.integers(0, 23),
    st.sampled_from(["daily", "weekly"]),
)
def test_a_period_begins_once_and_never_ends_before_the_next(
    now: datetime, timezone: str, hour: int, frequency: str
) -> None:
    wanted = Preferences(frequency=frequency, timezone=timezone, hour=hour)
    try:
        later = now + DAY
        here, there = due_period(wanted, now), due_period(wanted, later)
    except OverflowError:  # at the ends of the calendar some zones have no date
        assert now.year in (1, 9999)
        return
    assert here is not None
    assert there is not None
    assert here <= there
    if frequency == "daily" and timezone == "UTC" and now.year > 1:
        assert here != there
        assert here == (now - timedelta(hours=hour)).date().isoformat()


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="now"):
        due_period(Preferences(), datetime(2026, 4, 24))


RECIPIENT = {"a@b.org": (550, b"no such user")}


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Refused(550, "5.1.1 gone", mailbox=True), "failed", "mailbox: 550 5.1.1 gone"),
        (Refused(554, "spam", mailbox=False), "failed", "554 spam"),
        (Refused(451, "busy", mailbox=True), "later", "451 busy"),
        (Unavailable("away"), "later", "away"),
        (Uncertain("no answer"), "unknown", "no answer"),
        (ConnectionRefusedError("nobody there"), "later", "nobody there"),
        (socket.gaierror("no such host"), "later", "no such host"),
        (smtplib.SMTPConnectError(554, b"go away"), "later", "go away"),
        (smtplib.SMTPAuthenticationError(535, b"wrong"), "later", "wrong"),
        (smtplib.SMTPRecipientsRefused(RECIPIENT), "failed", "mailbox: 550 no such user"),
        (smtplib.SMTPRecipientsRefused({"a@b.org": (450, b"busy")}), "later", "450 busy"),
        (smtplib.SMTPDataError(554, b"spam"), "failed", "spam"),
        (smtplib.SMTPDataError(452, b"full"), "later", "full"),
        # after these it may have gone out
        (smtplib.SMTPServerDisconnected("closed"), "unknown", "closed"),
        (ConnectionResetError("reset"), "unknown", "reset"),
        (TimeoutError(), "unknown", "TimeoutError"),
        (RuntimeError("broken"), "unknown", "broken"),
    ],
)
def test_what_is_known_after_a_failure(error: Exception, status: str, said: str) -> None:
    found, reason = outcome(error)
    assert found == status
    assert said in reason


# the book


@pytest.fixture
def world(store_url: str) -> Iterator[World]:
    made = World(store_url)
    yield made
    made.close()


@pytest.fixture
def ledger(world: World) -> Ledger:
    return Ledger(world.store)


def test_a_period_is_claimed_once(world: World, ledger: Ledger) -> None:
    reader, other = world.reader(), world.reader("other")
    row = ledger.claim(reader.id, "2026-04-24", "<m>", [1, 2], NOW)
    assert row is not None
    assert ledger.claim(reader.id, "2026-04-24", "<m>", [3], NOW) is None
    assert ledger.has(reader.id, "2026-04-24")
    assert not ledger.has(other.id, "2026-04-24")
    assert ledger.claim(other.id, "2026-04-24", "<m>", [1], NOW) is not None
    assert ledger.claim(reader.id, "2026-04-25", "<m>", [3], NOW) is not None
    ledger.release(row)
    assert not ledger.has(reader.id, "2026-04-24")
    assert ledger.claim(reader.id, "2026-04-24", "<m>", [1], NOW) is not None


def test_of_many_at_once_one_gets_the_claim(world: World, ledger: Ledger) -> None:
    reader = world.reader()
    won: list[int | None] = []
    start = threading.Barrier(8)

    def claim() -> None:
        start.wait()
        won.append(ledger.claim(reader.id, "2026-04-24", "<m>", [1], NOW))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 8
    assert len([row for row in won if row is not None]) == 1


def test_two_runs_on_either_side_of_midnight_send_a_paper_once(world: World, ledger: Ledger) -> None:
    reader = world.reader()
    assert ledger.claim(reader.id, "2026-04-24", "<m>", [1, 2], NOW) is not None
    assert ledger.claim(reader.id, "2026-04-25", "<m>", [2, 3], NOW) is None
    assert ledger.claim(reader.id, "2026-04-25", "<m>", [3, 4], NOW) is not None


def test_no_claim_for_one_who_left_meanwhile(world: World, ledger: Ledger) -> None:
    reader = world.reader()
    world.people.unsubscribe(reader.unsubscribe_token)
    assert ledger.claim(reader.id, "2026-04-24", "<m>", [1], NOW) is None
    assert ledger.claim("0" * 32, "2026-04-24", "<m>", [1], NOW) is None
    assert world.rows() == []


def test_what_was_delivered(world: World, ledger: Ledger) -> None:
    reader = world.reader()
    assert ledger.delivered(reader.id) == (None, set())
    rows = [ledger.claim(reader.id, f"2026-04-2{n}", "<m>", [n, 10 + n], NOW + n * DAY) for n in range(5)]
    sent, refused, bounced, unsure, _ = [row for row in rows if row is not None]
    ledger.sent(sent, NOW)
    ledger.failed(refused, "554 spam", NOW)
    ledger.failed(bounced, "mailbox: 550 gone", NOW)
    ledger.uncertain(unsure, "no answer", NOW)
    # what was refused may be sent in another digest, what may have gone out may not
    assert ledger.delivered(reader.id) == (NOW + 4 * DAY, {0, 10, 3, 13, 4, 14})


def test_an_interrupted_row_is_told_once_and_never_claimed_again(world: World, ledger: Ledger) -> None:
    reader = world.reader()
    ledger.claim(reader.id, "2026-04-24", "<m1>", [1], NOW)
    told = ledger.interrupted(reader.id, reader.email, NOW)
    assert [(one.period, one.status, one.message_id) for one in told] == [("2026-04-24", "unknown", "<m1>")]
    assert ledger.interrupted(reader.id, reader.email, NOW) == []
    assert ledger.claim(reader.id, "2026-04-24", "<m1>", [1], NOW) is None
    assert ledger.delivered(reader.id) == (NOW, {1})


def test_a_mailbox_bounced_when_its_last_three_were_refused(world: World, ledger: Ledger) -> None:
    reader = world.reader()
    reasons = ["mailbox: 550 x", "mailbox: 550 x", "554 spam", "", *["mailbox: 550 x"] * BOUNCES]
    seen = []
    for number, reason in enumerate(reasons, 1):
        row = ledger.claim(reader.id, f"2026-04-{number:02}", "<m>", [], NOW)
        assert row is not None
        if reason:
            ledger.failed(row, reason, NOW)
        else:
            ledger.sent(row, NOW)
        seen.append(ledger.bounced(reader.id))
    assert seen == [False] * 6 + [True]
