"""Digests on their way: over a real server, refused, interrupted, killed, and by two processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest
from feed.digest_world import DAY, NOW, Kept, World, statuses
from feed.mail_server import MailServer, answering, mail_server

from paperworks.feed.delivery import BOUNCES
from paperworks.feed.mail import SmtpTransport, Unavailable


@pytest.fixture
def world(store_url: str) -> Iterator[World]:
    made = World(store_url)
    yield made
    made.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[World]:
    made = World(str(tmp_path / "store.sqlite"))
    yield made
    made.close()


def through(server: MailServer) -> SmtpTransport:
    return SmtpTransport(server.host, server.port, context=server.context(), per_minute=60_000)


class Failing(Kept):
    """A transport that raises for some readers, before it takes the message or after."""

    def __init__(self, after: bool = False, **errors: BaseException) -> None:
        super().__init__()
        self.after, self.errors = after, errors

    def send(self, message: EmailMessage) -> None:
        error = self.errors.get(message["To"].addresses[0].username)
        if error is None or self.after:
            super().send(message)
        if error is not None:
            raise error


def test_every_reader_is_sent_what_is_due_once_a_period(world: World) -> None:
    world.reader("one")
    world.reader("two", queries=["bread"])
    world.reader("three", queries=["gravity"])
    gone = world.reader("four")
    world.people.unsubscribe(gone.unsubscribe_token)
    world.people.request("five@example.org", NOW)
    world.paper(1, "A Paper on Bread")
    transport = Kept()
    told = world.digest.send(transport, NOW)
    assert statuses(told) == {"one": "sent", "two": "sent"}
    assert [one.papers for one in told] == [("2604.00001",)] * 2
    assert [one.message_id for one in told] == [message["Message-ID"] for message in transport.sent]
    assert world.digest.send(transport, NOW) == []
    assert world.digest.send(transport, NOW + timedelta(hours=14)) == []
    assert world.digest.send(transport, NOW + DAY) == []  # another day, and nothing new
    assert transport.recipients == ["one@example.org", "two@example.org"]
    assert world.rows() == [("2026-04-24", "sent")] * 2


def test_each_at_their_hour(local: World) -> None:
    for number, zone in enumerate(("UTC", "Europe/Berlin", "Asia/Tokyo")):
        local.reader(f"r{number}", timezone=zone, hour=8, at=NOW.replace(hour=0))
    local.paper(1)
    midnight = NOW.replace(hour=0, minute=0)
    sent = {}
    transport = Kept()
    for hour in range(24):
        for one in local.digest.send(transport, midnight + timedelta(hours=hour)):
            sent[one.email[:2]] = (hour, one.period)
    assert sent == {"r0": (8, "2026-04-24"), "r1": (6, "2026-04-24"), "r2": (0, "2026-04-24")}


def test_over_a_real_server(world: World) -> None:
    reader = world.reader()
    world.paper(1, "Größe × 研究", abstract=".\n. dots\n" * 5)
    with mail_server() as server, through(server) as transport:
        assert statuses(world.digest.send(transport, NOW)) == {"reader": "sent"}
        [received] = server.received
        assert received.encrypted
        assert (received.source, received.targets) == ("papers@example.org", ["reader@example.org"])
        assert received.message["Subject"] == "1 new paper: Größe × 研究"
        assert reader.unsubscribe_token in received.message["List-Unsubscribe"]
        assert world.ids(received.message) == ["2604.00001"]


def test_one_readers_fault_does_not_keep_the_others_from_theirs(world: World) -> None:
    for name in ("gone", "full", "reader", "cut", "late"):
        world.reader(name)
    world.paper(1)
    gone_wrong = answering(gone="550 5.1.1 no such user", full="452 4.2.2 mailbox full")
    with mail_server(on_recipient=gone_wrong, on_data=answering(cut=MailServer.CUT)) as server:
        told = world.digest.send(through(server), NOW)
        assert statuses(told) == {"gone": "failed", "full": "later", "reader": "sent", "cut": "unknown", "late": "sent"}
        assert "no such user" in told[0].reason
        assert world.rows() == [("2026-04-24", status) for status in ("failed", "sent", "failed", "sent")]
        server.on_recipient = server.on_data = answering()
        # the temporary one is tried again, the others are not, whatever became of them
        assert statuses(world.digest.send(through(server), NOW + timedelta(hours=1))) == {"full": "sent"}
        assert world.digest.send(through(server), NOW + timedelta(hours=2)) == []
        assert Counter(r.targets[0] for r in server.received) == {
            f"{name}@example.org": 1 for name in ("reader", "cut", "late", "full")
        }


def test_a_mailbox_that_is_refused_three_times_is_suppressed(world: World) -> None:
    world.reader("gone")
    world.reader("reader")
    with mail_server(on_recipient=answering(gone="550 5.1.1 no such user")) as server, through(server) as transport:
        for days in range(BOUNCES):
            assert len(world.people.active()) == 2
            world.paper(days, day=(NOW + days * DAY).date())
            assert statuses(world.digest.send(transport, NOW + days * DAY)) == {"gone": "failed", "reader": "sent"}
    assert [one.email for one in world.people.active()] == ["reader@example.org"]
    [suppressed] = world.people.suppressed()
    assert suppressed.email == "gone@example.org"
    assert "no such user" in suppressed.reason
    assert world.people.request("gone@example.org", NOW + 9 * DAY) is None


def test_a_refusal_of_policy_suppresses_nobody(local: World) -> None:
    local.reader()
    with mail_server(on_recipient=answering(reader="554 5.7.1 relay access denied")) as server:
        for days in range(BOUNCES + 1):
            local.paper(days, day=(NOW + days * DAY).date())
            assert statuses(local.digest.send(through(server), NOW + days * DAY)) == {"reader": "failed"}
    assert local.people.suppressed() == []


def test_papers_of_a_refused_digest_come_with_the_next(local: World) -> None:
    local.reader()
    local.paper(1)
    with mail_server(on_data=answering(reader="554 looks like spam")) as server:
        local.digest.send(through(server), NOW)
        server.on_data = answering()
        assert local.digest.send(through(server), NOW + timedelta(hours=1)) == []
        assert [one.papers for one in local.digest.send(through(server), NOW + DAY)] == [("2604.00001",)]


def test_a_server_that_is_away_ends_the_run_and_nothing_is_lost(world: World) -> None:
    for number in range(6):
        world.reader(f"r{number}")
    world.paper(1)
    with mail_server() as server:
        transport = through(server)
    told = world.digest.send(transport, NOW)
    assert statuses(told) == {"r0": "later", "r1": "later", "r2": "later"}
    assert all(one.period == "2026-04-24" and one.reason for one in told)
    assert world.rows() == []
    assert len(world.digest.send(Kept(), NOW)) == 6


def test_a_short_absence_does_not_end_the_run(local: World) -> None:
    for number in range(6):
        local.reader(f"r{number}")
    local.paper(1)
    transport = Failing(r0=Unavailable("away"), r1=Unavailable("away"), r3=Unavailable("away"), r4=Unavailable("away"))
    assert statuses(local.digest.send(transport, NOW)) == {
        "r0": "later", "r1": "later", "r2": "sent", "r3": "later", "r4": "later", "r5": "sent",
    }  # fmt: skip
    assert statuses(local.digest.send(Kept(), NOW)) == dict.fromkeys(("r0", "r1", "r3", "r4"), "sent")


@pytest.mark.parametrize("error", [RuntimeError("broken"), OSError("reset"), TimeoutError()])
@pytest.mark.parametrize("after", [False, True])
def test_a_fault_of_which_nothing_is_known_is_never_sent_again(local: World, error: Exception, after: bool) -> None:
    local.reader("one")
    local.reader("two")
    local.paper(1)
    transport = Failing(after, one=error)
    assert statuses(local.digest.send(transport, NOW)) == {"one": "unknown", "two": "sent"}
    assert local.digest.send(Kept(), NOW) == []
    local.paper(2, day=(NOW + DAY).date())
    told = local.digest.send(Kept(), NOW + DAY)
    assert [one.papers for one in told] == [("2604.00002",)] * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_goes_through_and_the_next_run_says_so(local: World, error: BaseException, after: bool) -> None:
    for name in ("one", "two", "three"):
        local.reader(name)
    local.paper(1)
    first, second = Failing(after, two=error), Kept()
    with pytest.raises(type(error)):
        local.digest.send(first, NOW)
    assert local.rows() == [("2026-04-24", "sent"), ("2026-04-24", "sending")]
    told = local.digest.send(second, NOW)
    assert statuses(told) == {"two": "unknown", "three": "sent"}
    assert local.digest.send(second, NOW) == []
    assert Counter(first.recipients + second.recipients) == {
        f"{name}@example.org": 1 for name in (("one", "two", "three") if after else ("one", "three"))
    }


def test_an_interrupted_digest_is_told_of_in_a_later_period_too(local: World) -> None:
    local.reader()
    local.paper(1)
    with pytest.raises(KeyboardInterrupt):
        local.digest.send(Failing(True, reader=KeyboardInterrupt()), NOW)
    local.paper(2, day=(NOW + DAY).date())
    told = local.digest.send(Kept(), NOW + DAY)
    assert [(one.period, one.status, one.papers) for one in told] == [
        ("2026-04-24", "unknown", ()),
        ("2026-04-25", "sent", ("2604.00002",)),
    ]


def test_what_cannot_be_built_or_recorded_stops_nobody(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        local.reader(name)
    local.paper(1)
    build, record = local.digest._message, local.digest._ledger.sent
    transport = Kept()

    def broken_build(subscriber: object, *rest: object) -> EmailMessage:
        if subscriber.email.startswith("one"):  # type: ignore[attr-defined]
            raise RuntimeError("no template")
        return build(subscriber, *rest)  # type: ignore[arg-type]

    def broken_record(row: int, now: datetime) -> None:
        if transport.recipients[-1].startswith("two"):
            raise OSError("disk full")
        record(row, now)

    monkeypatch.setattr(local.digest, "_message", broken_build)
    monkeypatch.setattr(local.digest._ledger, "sent", broken_record)
    told = local.digest.send(transport, NOW)
    assert statuses(told) == {"one": "later", "two": "unknown", "three": "sent"}
    monkeypatch.undo()
    assert statuses(local.digest.send(transport, NOW)) == {"one": "sent", "two": "unknown"}
    assert sorted(transport.recipients) == [f"{name}@example.org" for name in ("one", "three", "two")]


def test_one_who_leaves_during_the_run_is_sent_nothing(local: World) -> None:
    local.reader("one")
    two = local.reader("two")
    local.paper(1)

    class Leaving(Kept):
        def send(self, message: EmailMessage) -> None:
            super().send(message)
            local.people.unsubscribe(two.unsubscribe_token)

    transport = Leaving()
    assert statuses(local.digest.send(transport, NOW)) == {"one": "sent"}
    assert transport.recipients == ["one@example.org"]


def test_a_dry_run_writes_files_and_keeps_nothing(local: World, tmp_path: Path) -> None:
    one, _ = local.reader("one"), local.reader("two")
    local.paper(1, "Größe")
    transport, folder = Kept(), tmp_path / "mails"
    for _ in range(2):
        told = local.digest.send(transport, NOW, dry_run=folder)
        assert statuses(told) == {"one": "dry run", "two": "dry run"}
    assert transport.sent == []
    assert local.rows() == []
    assert sorted(str(path) for path in folder.iterdir()) == sorted(one.reason for one in told)
    found = message_from_bytes(Path(told[0].reason).read_bytes(), policy=policy.default)
    assert found["To"] == one.email
    assert found["Subject"] == "1 new paper: Größe"
    assert statuses(local.digest.send(transport, NOW)) == {"one": "sent", "two": "sent"}
    assert local.digest.send(transport, NOW, dry_run=folder) == []


# processes

PROGRAM = """
import os, signal, sys, time
from datetime import datetime
from feed.digest_world import World, NOW
from paperworks.feed.verdicts import Verdicts

url, log, dies, start = sys.argv[1:]

class Written:
    def send(self, message):
        with open(log, "a") as file:
            file.write(message["To"] + "\\n")
            file.flush()
            os.fsync(file.fileno())
        if dies in message["To"]:
            os._exit(9)

world = World(url)
while not os.path.exists(start):
    time.sleep(0.005)
for one in world.digest.send(Written(), NOW):
    print(one.email.partition("@")[0], one.status)
"""


def started(url: str, log: Path, start: Path, dies: str = "nobody") -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(log), dies, str(start)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def test_a_process_that_dies_between_sending_and_recording(world: World, store_url: str, tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(5)]
    for name in names:
        world.reader(name)
    world.paper(1)
    log, start = tmp_path / "log", tmp_path / "start"
    start.touch()
    assert started(store_url, log, start, dies="r2").wait(60) == 9
    assert world.rows() == [("2026-04-24", status) for status in ("sent", "sent", "sending")]
    second = started(store_url, log, start)
    told = dict(line.split(maxsplit=1) for line in second.communicate(timeout=60)[0].splitlines())
    assert told == {"r2": "unknown", "r3": "sent", "r4": "sent"}
    assert Counter(log.read_text().split()) == {f"{name}@example.org": 1 for name in names}


def test_processes_at_once_send_each_digest_once(world: World, store_url: str, tmp_path: Path) -> None:
    names = [f"r{number:02}" for number in range(12)]
    for name in names:
        world.reader(name)
    world.paper(1)
    log, start = tmp_path / "log", tmp_path / "start"
    running = [started(store_url, log, start) for _ in range(2)]
    start.touch()
    told = [line.split(maxsplit=1) for one in running for line in one.communicate(timeout=120)[0].splitlines()]
    assert Counter(log.read_text().split()) == {f"{name}@example.org": 1 for name in names}
    assert Counter(name for name, status in told if status == "sent") == dict.fromkeys(names, 1)
    assert world.rows() == [("2026-04-24", "sent")] * len(names)
