"""Asking, confirming and leaving, on SQLite and on PostgreSQL."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from paperworks.feed.preferences import Preferences
from paperworks.feed.store import Store
from paperworks.feed.subscriptions import FORGOTTEN, TOKEN_LIFE, TOKENS_A_DAY, Subscriber, Subscriptions
from paperworks.feed.tables import subscribers, tokens

NOW = datetime(2026, 4, 24, 9, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        yield opened


@pytest.fixture
def people(store: Store) -> Subscriptions:
    return Subscriptions(store, "secret")


def asked(people: Subscriptions, email: str = "reader@example.org", now: datetime = NOW) -> str:
    token = people.request(email, now)
    assert token is not None
    return token


def joined(people: Subscriptions, email: str = "reader@example.org", now: datetime = NOW) -> Subscriber:
    return people.confirm(asked(people, email, now), now)


def test_an_address_is_active_once_its_token_came_back(people: Subscriptions) -> None:
    token = asked(people, "Reader@EXAMPLE.org")
    assert people.active() == []
    subscriber = people.confirm(token, NOW + HOUR)
    assert (subscriber.email, subscriber.status, subscriber.confirmed) == ("Reader@example.org", "active", NOW + HOUR)
    assert people.active() == [subscriber]
    assert people.request("Reader@example.org", NOW + HOUR) is None
    assert people.active() == [subscriber]


def test_a_token_is_32_random_bytes_of_which_the_digest_is_kept(people: Subscriptions, store: Store) -> None:
    made = {asked(people, f"reader{number}@example.org") for number in range(20)}
    assert len(made) == 20
    assert all(re.fullmatch(r"[\w-]{43}", token) for token in made)
    with store.database.read() as connection:
        kept = set(connection.scalars(select(tokens.c.digest)))
    assert kept == {hashlib.sha256(token.encode()).hexdigest() for token in made}


def test_a_token_serves_once(people: Subscriptions) -> None:
    token = asked(people)
    people.confirm(token, NOW)
    with pytest.raises(ValueError, match="unknown, used or expired"):
        people.confirm(token, NOW)


def test_a_token_serves_for_48_hours(people: Subscriptions) -> None:
    token = asked(people)
    assert timedelta(hours=48) == TOKEN_LIFE
    with pytest.raises(ValueError, match="expired"):
        people.confirm(token, NOW + TOKEN_LIFE)
    assert people.confirm(token, NOW + TOKEN_LIFE - timedelta(microseconds=1)).status == "active"


def test_a_new_token_voids_the_one_before(people: Subscriptions) -> None:
    first, second = asked(people), asked(people, now=NOW + HOUR)
    assert first != second
    with pytest.raises(ValueError, match="unknown, used or expired"):
        people.confirm(first, NOW + HOUR)
    people.confirm(second, NOW + HOUR)


@pytest.mark.parametrize("token", ["", "x", "a" * 43, "é" * 43, "\x00", "\ud800", "a" * 100_000, "' OR 1=1 --"])
def test_unknown_tokens_are_refused(people: Subscriptions, token: str) -> None:
    joined(people)
    with pytest.raises(ValueError, match="unknown"):
        people.confirm(token, NOW)
    assert people.unsubscribe(token) is False
    assert people.find(token) is None


def test_an_address_is_sent_three_tokens_a_day(people: Subscriptions) -> None:
    for number in range(TOKENS_A_DAY):
        last = asked(people, now=NOW + number * HOUR)
    assert people.request("reader@example.org", NOW + 24 * HOUR - timedelta(seconds=1)) is None
    assert people.request("other@example.org", NOW + 3 * HOUR) is not None
    # what was sent stays good
    assert people.confirm(last, NOW + 24 * HOUR - timedelta(seconds=1)).status == "active"


def test_after_a_day_an_address_may_ask_again(people: Subscriptions) -> None:
    for number in range(TOKENS_A_DAY):
        asked(people, now=NOW + number * HOUR)
    asked(people, now=NOW + 24 * HOUR)
    assert people.request("reader@example.org", NOW + 24 * HOUR) is None


def test_unsubscribing_is_at_once_and_may_be_repeated(people: Subscriptions) -> None:
    subscriber, other = joined(people), joined(people, "other@example.org")
    assert people.unsubscribe(subscriber.unsubscribe_token) is True
    assert [one.email for one in people.active()] == [other.email]
    assert people.unsubscribe(subscriber.unsubscribe_token) is True
    found = people.find(subscriber.unsubscribe_token)
    assert found is not None
    assert found.status == "unsubscribed"


def test_the_unsubscribe_token_is_the_same_in_every_mail_and_process(people: Subscriptions, store: Store) -> None:
    subscriber = joined(people)
    again = Subscriptions(store, b"secret")
    assert again.active()[0].unsubscribe_token == subscriber.unsubscribe_token
    assert re.fullmatch(r"[\w-]+", subscriber.unsubscribe_token)
    people.unsubscribe(subscriber.unsubscribe_token)
    assert joined(people, now=NOW + HOUR).unsubscribe_token == subscriber.unsubscribe_token
    other = Subscriptions(store, "another secret")
    assert other.unsubscribe(subscriber.unsubscribe_token) is False
    assert len(people.active()) == 1


def test_no_other_token_unsubscribes(people: Subscriptions) -> None:
    one, other = joined(people), joined(people, "other@example.org")
    token = one.unsubscribe_token
    forged = {
        token[:-1], token + "A", token.upper(), token[::-1], other.id + token[len(one.id) :], one.id, f" {token}",
        *(f"{token[:n]}{'A' if token[n] != 'A' else 'B'}{token[n + 1 :]}" for n in range(len(token))),
    }  # fmt: skip
    for text in forged:
        assert people.unsubscribe(text) is False
        assert people.find(text) is None
    assert len(people.active()) == 2


def test_a_confirmation_token_is_no_unsubscribe_token_and_the_reverse(people: Subscriptions) -> None:
    token = asked(people)
    assert people.unsubscribe(token) is False
    subscriber = people.confirm(token, NOW)
    with pytest.raises(ValueError, match="unknown"):
        people.confirm(subscriber.unsubscribe_token, NOW)


def test_leaving_voids_a_token_that_is_out_and_coming_back_takes_a_new_one(people: Subscriptions) -> None:
    subscriber = joined(people)
    people.preferences(subscriber, queries=["wings"])
    people.unsubscribe(subscriber.unsubscribe_token)
    token = asked(people, now=NOW + HOUR)
    assert people.active() == []  # asking again is not being subscribed
    people.unsubscribe(subscriber.unsubscribe_token)
    with pytest.raises(ValueError, match="used"):
        people.confirm(token, NOW + HOUR)
    assert joined(people, now=NOW + 2 * HOUR).preferences.queries == ["wings"]


def test_a_suppressed_address_stays_so_until_it_is_released(people: Subscriptions) -> None:
    subscriber, token = joined(people), asked(people, "pending@example.org")
    people.preferences(subscriber, hour=7)
    people.suppress("reader@EXAMPLE.org", "complaint\r\nof 24 April", NOW)
    people.suppress("pending@example.org", "bounce", NOW)
    people.suppress("stranger@example.org", "bounce", NOW)
    assert people.active() == []
    assert people.find(subscriber.unsubscribe_token) is None
    assert [(one.email, one.reason, one.at) for one in people.suppressed()] == [
        ("pending@example.org", "bounce", NOW),
        ("reader@example.org", "complaint of 24 April", NOW),
        ("stranger@example.org", "bounce", NOW),
    ]
    for email in ("reader@example.org", "pending@example.org", "stranger@example.org"):
        assert people.request(email, NOW + HOUR) is None
    with pytest.raises(ValueError, match="not sent mail any more"):
        people.confirm(token, NOW + HOUR)
    with pytest.raises(ValueError, match="suppressed"):
        people.preferences(subscriber, hour=8)
    assert people.unsubscribe(subscriber.unsubscribe_token) is True
    assert len(people.suppressed()) == 3
    assert people.release("reader@example.org", NOW + HOUR) is True
    assert people.release("reader@example.org", NOW + HOUR) is False
    assert people.active() == []
    assert joined(people, now=NOW + HOUR).preferences.hour == 7


def test_an_address_that_never_confirmed_is_forgotten(people: Subscriptions, store: Store) -> None:
    asked(people, "silent@example.org")
    joined(people, "loud@example.org")
    asked(people, "late@example.org", NOW + FORGOTTEN)
    asked(people, "later@example.org", NOW + FORGOTTEN + HOUR)
    with store.database.read() as connection:
        emails = set(connection.scalars(select(subscribers.c.email)))
        rows = connection.scalar(select(func.count()).select_from(tokens))
    assert emails == {"loud@example.org", "late@example.org", "later@example.org"}
    assert rows == 3 - 1 + 1  # that of the active address is not yet old enough


def test_naive_times_are_refused(people: Subscriptions) -> None:
    naive = datetime(2026, 4, 24)
    subscriber = joined(people)
    for call in (
        lambda: people.request("a@b.org", naive),
        lambda: people.confirm("x", naive),
        lambda: people.unsubscribe(subscriber.unsubscribe_token, naive),
        lambda: people.suppress("a@b.org", "bounce", naive),
    ):
        with pytest.raises(ValueError, match="now: got 2026-04-24T00:00:00 without a time zone"):
            call()
    assert [one.email for one in people.active()] == ["reader@example.org"]


def test_without_a_time_it_is_now(people: Subscriptions) -> None:
    token = people.request("reader@example.org")
    assert token is not None
    confirmed = people.confirm(token).confirmed
    assert confirmed is not None
    assert abs(confirmed - datetime.now(UTC)) < HOUR


def test_a_malformed_address_changes_nothing(people: Subscriptions, store: Store) -> None:
    for email in ("a@b.org\r\nBcc: c@d.org", "a b@c.org", ""):
        with pytest.raises(ValueError, match="email"):
            people.request(email, NOW)
    with store.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(subscribers)) == 0


def test_the_secret_has_to_be_there(store: Store) -> None:
    for secret in ("", b""):
        with pytest.raises(ValueError, match="secret"):
            Subscriptions(store, secret)
    with pytest.raises(TypeError, match="secret"):
        Subscriptions(store, None)  # type: ignore[arg-type]


def test_many_at_once_make_one_subscriber_and_one_good_token(people: Subscriptions) -> None:
    made: list[str | None] = []
    start = threading.Barrier(6)

    def ask() -> None:
        start.wait()
        made.append(people.request("reader@example.org", NOW))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out = [token for token in made if token is not None]
    assert (len(made), len(out)) == (6, TOKENS_A_DAY)
    good = 0
    for token in out:
        try:
            people.confirm(token, NOW)
        except ValueError:
            continue
        good += 1
    assert good == 1
    assert len(people.active()) == 1


def test_a_token_used_by_two_at_once_serves_one(people: Subscriptions) -> None:
    token = asked(people)
    told: list[str] = []
    start = threading.Barrier(4)

    def confirm() -> None:
        start.wait()
        try:
            told.append(people.confirm(token, NOW).status)
        except ValueError:
            told.append("refused")

    threads = [threading.Thread(target=confirm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["active", "refused", "refused", "refused"]


# preferences


def test_preferences_are_kept(people: Subscriptions) -> None:
    subscriber = joined(people)
    assert subscriber.preferences == Preferences()
    wanted: dict[str, Any] = {
        "frequency": "weekly", "queries": ["sparse attention"], "areas": ["kan"], "minimum_score": 3,
        "timezone": "Europe/Berlin", "hour": 7, "count": 5,
    }  # fmt: skip
    changed = people.preferences(subscriber, **wanted)
    assert changed.preferences.to_mapping() == wanted
    assert all(changed.preferences[name] == value for name, value in wanted.items())
    assert people.active() == [changed]
    # a change of one leaves the others, also when it is made from an older account of the subscriber
    assert people.preferences(subscriber, hour=8).preferences == Preferences(**{**wanted, "hour": 8})
    with pytest.raises(KeyError):
        changed.preferences["email"]


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": "red"}, {"email": "a@b.org"}, {"status": "active"}, {"frequency": "hourly"}, {"frequency": None},
        {"queries": [""]}, {"queries": ["\n"]}, {"queries": ["x" * 201]}, {"queries": [f"q{n}" for n in range(21)]},
        {"areas": ["x" * 65]}, {"areas": [f"a{n}" for n in range(51)]}, {"minimum_score": -1},
        {"minimum_score": float("nan")}, {"minimum_score": float("inf")}, {"timezone": "Mars/Olympus"},
        {"timezone": ""}, {"timezone": "../../etc/passwd"}, {"timezone": "/etc/passwd"}, {"timezone": "Europe"},
        {"timezone": "Europe/Berlin\n"}, {"timezone": "\x00"}, {"hour": 24}, {"hour": -1}, {"count": 0}, {"count": 51},
    ],
)  # fmt: skip
def test_wrong_preferences_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Preferences().changed(changes)


def test_a_wrong_preference_changes_nothing(people: Subscriptions) -> None:
    subscriber = joined(people)
    for wrong in ({"hour": 24}, {"colour": "red"}, {"email": "other@example.org"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            people.preferences(subscriber, count=5, **wrong)
    assert people.active() == [subscriber]


@pytest.mark.parametrize(
    "changes",
    [{"queries": "x"}, {"queries": [1]}, {"areas": None}, {"minimum_score": "3"}, {"minimum_score": True},
     {"timezone": None}, {"hour": 7.5}, {"hour": True}, {"count": "5"}],
)  # fmt: skip
def test_preferences_of_a_wrong_type_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(changes))):
        Preferences(**changes)


def test_queries_are_lines_and_each_is_kept_once() -> None:
    found = Preferences(queries=["  sparse\r\n attention ", "sparse attention", "wings"])
    assert found.queries == ["sparse attention", "wings"]


def test_what_this_version_does_not_understand_is_as_by_default() -> None:
    stored = {"hour": 7, "timezone": "Atlantis/Capital", "count": "many", "colour": "red", "suppressed": "bounce"}
    assert Preferences.from_mapping(stored) == Preferences(hour=7)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(texts=st.lists(st.text(max_size=210), max_size=22))
def test_any_texts_are_refused_or_come_back(people: Subscriptions, texts: list[str]) -> None:
    subscriber = people.active()[0] if people.active() else joined(people)
    try:
        changed = people.preferences(subscriber, queries=texts)
    except ValueError:
        return
    assert people.active() == [changed]
    assert all(query == " ".join(query.split()) and 0 < len(query) <= 200 for query in changed.preferences.queries)


def test_preferences_of_an_unknown_subscriber(people: Subscriptions) -> None:
    with pytest.raises(ValueError, match="subscriber"):
        people.preferences(Subscriber("0" * 32, "a@b.org", "", Preferences()), hour=1)
