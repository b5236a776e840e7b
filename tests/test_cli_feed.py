"""The commands of the catalogue: ingest from a server and from files, search, trending, digest, serve."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest
from feed.loopback import Loopback, loopback
from feed.mail_server import mail_server

from paperworks.cli import main
from paperworks.cli_feed import MailServer
from paperworks.feed.evaluation import judged
from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.subscriptions import Subscriptions
from paperworks.lab import registry
from paperworks.lab.records import Verdict

Run = Callable[..., tuple[int, str, str]]
NOW = datetime(2026, 4, 24, 18, tzinfo=UTC)
ITEM = {
    "paper": {"id": "2604.00001", "title": "Learning to Fly on Paper Wings", "upvotes": 7},
    "publishedAt": "2026-04-24T08:00:00Z",
}
BAD = {"paper": {"id": "2604.00002"}}
CARDS = len({card.id for card in registry.catalogue()})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call a command with a store, a cache and a secret of its own."""
    monkeypatch.setenv("PAPERWORKS_DB", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("PAPERWORKS_SECRET", "a secret of the tests")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("SMTP", "SENDER", "BASE_URL", "OWNER_TOKEN"):
        monkeypatch.delenv(f"PAPERWORKS_{name}", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paperworks", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as state:
        yield state


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def test_the_daily_list_is_read_once_and_then_known_offline_too(run: Run, server: Loopback, store: Store) -> None:
    server.answer = lambda asked: (200, {}, json.dumps([ITEM, BAD]).encode())
    command = ("ingest", "--source", "daily", "--date", "2026-04-24", "--base-url", server.url)
    code, out, _ = run(*command)
    assert code == 0
    assert "1 record: 1 new, 0 updated, 0 merged, 0 unchanged" in out
    assert "1 skipped" in out
    assert "item 2 (2604.00002): paper: got JSON without a title" in out
    assert server.asked[0].query["date"] == "2026-04-24"
    assert len(store) == CARDS + 1, "the cards of all papers are there as well"
    assert [paper.id for paper in store.day(date(2026, 4, 24))] == ["2604.00001"]
    server.answer = lambda asked: (500, {}, b"")
    code, out, _ = run(*command, "--offline", "--json")
    assert code == 0
    assert json.loads(out) == {
        "read": 1, "new": 0, "updated": 0, "merged": 0, "unchanged": 1,
        "skipped": [{"item": "item 2 (2604.00002)", "reason": "paper: got JSON without a title, wanted a paper"}],
    }  # fmt: skip
    assert run(*command, "--offline", "--strict")[0] == 1
    assert len(server.asked) == 1
    code, out, err = run("ingest", "--source", "daily", "--week", "2026-W17", "--base-url", server.url, "--offline")
    assert code == 1, "a source out of reach is no bad usage"
    assert "not in the cache" in err
    assert "0 records" in out


def test_week_month_and_search_of_the_daily_list(run: Run, server: Loopback) -> None:
    server.answer = lambda asked: (200, {}, json.dumps([ITEM]).encode())
    for option, value in (("week", "2026-W17"), ("month", "2026-04"), ("query", "paper wings")):
        assert run("ingest", "--source", "daily", f"--{option}", value, "--base-url", server.url)[0] == 0
        asked = server.asked[-1].query
        assert value in (asked.get(option), asked.get("q"))
    run("ingest", "--source", "daily", "--base-url", server.url)
    assert abs(date.fromisoformat(server.asked[-1].query["date"]) - datetime.now(UTC).date()) <= timedelta(days=1)


ATOM = (
    '<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>http://arxiv.org/abs/2604.00001v1</id>'
    "<title>Paper</title></entry><entry><id>urn:x</id><title>Other</title></entry></feed>"
)
OAI = (
    '<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords><record><header/><metadata>'
    '<arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>2604.00002</id><title>Another</title></arXiv></metadata></record>'
    "</ListRecords></OAI-PMH>"
)


def test_arxiv_by_query_and_by_harvest(run: Run, server: Loopback, store: Store) -> None:
    server.answer = lambda asked: (200, {}, (OAI if asked.path == "/oai" else ATOM).encode())
    arxiv = ("ingest", "--base-url", server.url, "--json", "--source")
    code, out, _ = run(*arxiv, "arxiv", "--query", "all:wings", "--category", "cs.LG", "--since", "2026-04-01")
    assert (code, json.loads(out)["new"], len(json.loads(out)["skipped"])) == (0, 1, 1)
    assert server.asked[0].query["search_query"] == "cat:cs.LG AND (all:wings)"
    code, out, _ = run(*arxiv, "oai", "--since", "2026-04-01", "--until", "2026-04-02", "--set", "cs")
    assert (code, json.loads(out)["new"]) == (0, 1)
    asked = server.asked[1].query
    assert (asked["from"], asked["until"], asked["set"]) == ("2026-04-01", "2026-04-02", "cs")
    assert store.get("2604.00002") is not None


def test_files_are_read_and_a_bad_one_does_not_keep_the_others(run: Run, store: Store, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([ITEM, BAD]))
    (tmp_path / "atom.xml").write_text(ATOM.replace("00001v1", "00003v1"))
    (tmp_path / "page.txt").write_text("On Folding\n\nWe fold.\n\n3 authors · Dec 31")
    (tmp_path / "bad.json").write_text("{")
    given = [part for name in ("list.json", "bad.json", "missing", "atom.xml") for part in ("--from", name)]
    code, out, _ = run("ingest", *given)
    assert code == 0
    assert "2 records: 2 new" in out
    for said in (
        "list.json: item 2 (2604.00002): ",
        "bad.json: file: got JSON",
        "missing: [Errno 2]",
        "atom.xml: entry 2",
    ):
        assert said in out
    assert run("ingest", "--from", "page.txt", "--page-date", "2026-04-24")[0] == 0
    assert next(paper for paper in store.records() if paper.title == "On Folding").published == date(2025, 12, 31)
    os.utime(tmp_path / "page.txt", (0, datetime(2024, 1, 5, tzinfo=UTC).timestamp()))
    run("ingest", "--from", "page.txt")
    assert next(paper for paper in store.records() if paper.title == "On Folding").published == date(2023, 12, 31)
    (tmp_path / "none.json").write_text(json.dumps([BAD]))
    assert run("ingest", "--from", "none.json")[0] == 1, "nothing of it could be read"


def test_standard_input_is_a_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paperworks.cli", "ingest", "--from", "-", "--db", str(tmp_path / "s"), "--json"]
    done = subprocess.run(command, input=json.dumps([ITEM]), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["new"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ingest",), "wanted --source daily, arxiv or oai, or --from FILE"),
        (("ingest", "--source", "daily", "--from", "x"), "wanted --source"),
        (("ingest", "--source", "file"), "--source: got 'file'"),
        (("ingest", "--source", "arxiv", "--week", "2026-W17"), "--week: not an option of --source arxiv"),
        (("ingest", "--from", "x", "--since", "2026-04-24"), "--since: not an option of --from"),
        (("ingest", "--source", "daily", "--date", "2026-04-24", "--week", "2026-W17"), "--week: wanted only one of"),
        (("ingest", "--source", "daily", "--limit", "3"), "--limit: wanted only with --query"),
        (("ingest", "--source", "daily", "--date", "2026-02-30"), "date: got '2026-02-30'"),
        (("ingest", "--source", "daily", "--week", "2026-W60"), "week: got '2026-W60'"),
        (("ingest", "--source", "daily", "--base-url", "ftp://x"), "base_url: got 'ftp://x'"),
        (("ingest", "--source", "arxiv"), "neither a query nor a category"),
        (("ingest", "--source", "arxiv", "--category", "a b"), "category: got 'a b'"),
        (("ingest", "--source", "oai"), "--since: got none"),
        (("ingest", "--source", "oai", "--since", "yesterday"), "--since: got 'yesterday'"),
        (("ingest", "--from", "missing.json"), "No such file"),
        (("ingest", "--from", ".", "--page-date", "May 1"), "--page-date: got 'May 1'"),
        (("search",), "wanted words to look for, or --evaluate"),
        (("search", "x", "--evaluate"), "wanted words to look for, or --evaluate"),
        (("search", "--evaluate", "--area", "swin"), "--area: not an option of --evaluate"),
        (("search", "--evaluate", "--split", "half"), "split: got 'half'"),
        (("search", "x", "--since", "2026"), "--since: got '2026'"),
        (("search", "x", "--verdict", "maybe"), "verdict"),
        (("search", "x" * 1001), "text: got 1001 characters"),
        (("trending", "--window", "year"), "window: got 'year', wanted one of day, week, month"),
        (("trending", "--method", "magic"), "method: got 'magic'"),
        (("trending", "--now", "noon"), "--now: got 'noon'"),
        (("digest",), "wanted --smtp and --base-url, or --dry-run FOLDER"),
        (("digest", "--smtp", "smtp://localhost"), "wanted --smtp and --base-url"),
        (("digest", "--smtp", "http://x", "--base-url", "https://papers.example"), "url: not understood"),
        (("serve", "--allow-runs"), "--allow-runs: wanted an --owner-token as well"),
        (("serve", "--host", "0.0.0.0"), "--base-url: got none"),
        (("serve", "--base-url", "papers.example"), "base_url: got 'papers.example'"),
        (("serve", "--smtp", "nonsense"), "url: not understood"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_search_shows_what_matched_and_how_claims_stand(run: Run, store: Store) -> None:
    code, out, _ = run("search", "stochastic", "activation", "--limit", "3")
    assert code == 0
    assert "Stochastic Adaptive Activation Function" in out.splitlines()[0]
    assert "ash · activations" in out
    assert "not run" in out
    code, out, _ = run("search", "swin", "--json", "--limit", "2")
    found = json.loads(out)
    assert (code, found["query"], len(found["items"])) == (0, "swin", 2)
    for item in found["items"]:
        assert item["score"] == pytest.approx(sum(item["parts"].values()))
        assert all(0 <= start < end <= len(item["snippet"]) for start, end in item["marks"])
    store.lab.put_verdict(Verdict("ash", "generalises-swish", "exact", "holds", "desk", "cpu"))
    for verdict, ids in (("any", ["ash"]), ("holds", ["ash"]), ("fails", [])):
        given = ("--area", "activations", "--verdict", verdict, "--json")
        listed = json.loads(run("search", "activation", *given)[1])["items"]
        assert [item["card"] for item in listed] == ids
    assert "+ 1 holds" in run("search", "activation", "--verdict", "holds")[1]
    assert json.loads(run("search", "activation", "--until", "2001-01-01", "--json")[1])["items"] == []


def test_the_judged_queries_are_evaluated_by_kind_and_list(run: Run) -> None:
    code, out, _ = run("search", "--evaluate")
    assert code == 0
    for words in ("ndcg@10", "mrr", "recall@5", "paraphrase", "words alone", "meaning alone", "paired bootstrap"):
        assert words in out
    tuned = json.loads(run("search", "--evaluate", "--split", "tune", "--json")[1])
    assert f"all {len(judged('test'))} queries" in out
    assert tuned["queries"] == len(judged("tune"))
    assert 0 < tuned["ndcg@10"] <= 1


def test_trending_and_rising(run: Run, store: Store) -> None:
    assert "nothing yet" in run("trending")[1]
    store.add([PaperRecord("Learning to Fly", id="2604.00001", upvotes=8, first_seen=NOW.date(), source="daily")])
    store.event("ash", "vote", NOW, "ada")
    code, out, _ = run("trending", "--now", "2026-04-24T18:00:00", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(item["id"], item["score"]) for item in found] == [
        ("2604.00001", pytest.approx(8 * 2**-0.75)), ("2210.11672", pytest.approx(1.0))
    ]  # fmt: skip
    code, out, _ = run("trending", "--rising", "--now", "2026-04-24T18:00:00+00:00", "--limit", "1")
    assert code == 0
    assert "Learning to Fly" in out
    assert "ash · activations" in run("trending", "--method", "top", "--now", NOW.isoformat())[1]


def subscribed(store: Store, address: str) -> None:
    subscriptions = Subscriptions(store, "a secret of the tests")
    before = NOW - timedelta(hours=30)
    token = subscriptions.request(address, before)
    assert token is not None
    subscriptions.confirm(token, before)


def test_a_digest_is_written_as_often_as_one_likes_and_sent_once(run: Run, store: Store, tmp_path: Path) -> None:
    assert "no digest is due" in run("digest", "--dry-run", "mails")[1]
    subscribed(store, "reader@papers.example")
    store.add([PaperRecord("Learning to Fly", id="2604.00001", upvotes=8, first_seen=NOW.date(), source="daily")])
    for _ in range(2):
        code, out, _ = run("digest", "--dry-run", "mails", "--now", NOW.isoformat())
        assert code == 0
        assert "reader@papers.example" in out
    (mail,) = (tmp_path / "mails").glob("*.eml")
    assert b"Learning to Fly" in mail.read_bytes()
    with mail_server(starttls=False) as server:
        address = f"smtp://{server.host}:{server.port}?starttls=never"
        command = ("digest", "--smtp", address, "--base-url", "https://papers.example", "--json", "--now")
        code, out, _ = run(*command, NOW.isoformat())
        assert code == 0
        assert [(one["status"], one["email"]) for one in json.loads(out)] == [("sent", "reader@papers.example")]
        assert json.loads(run(*command, NOW.isoformat())[1]) == []
        assert json.loads(run(*command, (NOW + timedelta(days=1)).isoformat())[1]) == [], "nothing is new"
    assert len(server.received) == 1


def test_a_server_that_is_away_is_told_of(run: Run, store: Store) -> None:
    subscribed(store, "reader@papers.example")
    store.add([PaperRecord("Learning to Fly", id="2604.00001", upvotes=8, first_seen=NOW.date(), source="daily")])
    free = _free_port()
    address = f"smtp://127.0.0.1:{free}?starttls=never&timeout=2"
    code, out, _ = run("digest", "--smtp", address, "--base-url", "https://papers.example", "--now", NOW.isoformat())
    assert code == 1
    assert "later" in out


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_secret_is_kept_beside_the_store_for_its_owner_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAPERWORKS_SECRET")
    assert run("digest", "--dry-run", "mails")[0] == 0
    path = tmp_path / "store.sqlite.secret"
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_text()
    assert len(secret) > 40
    run("digest", "--dry-run", "mails")
    assert path.read_text() == secret
    path.chmod(0o644)
    code, _, err = run("digest", "--dry-run", "mails")
    assert code == 2
    assert "others can read it" in err
    path.chmod(0o600)
    path.write_text("\n")
    assert "empty file" in run("digest", "--dry-run", "mails")[2]


SERVE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
from paperworks.cli import main
from paperworks.cli_feed import MailServer

main()
"""


def test_the_site_is_served_until_it_is_interrupted(tmp_path: Path) -> None:
    port, database = _free_port(), str(tmp_path / "store.sqlite")
    command = [sys.executable, "-c", SERVE, "serve", "--port", str(port), "--db", database]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAPERWORKS_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address, deadline, answer = f"http://127.0.0.1:{port}", time.monotonic() + 90, None
        while answer is None and process.poll() is None and time.monotonic() < deadline:
            try:
                answer = urllib.request.urlopen(address + "/healthz", timeout=30).status
            except OSError:
                time.sleep(0.2)
        assert answer == 200, process.communicate(timeout=5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert f"serving at {address}" in out
    assert "Aborted" not in err
    assert (tmp_path / "store.sqlite.secret").stat().st_mode & 0o777 == 0o600


def test_an_interrupted_ingest_keeps_what_was_added(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("paperworks.feed.ingest.read_file", broken)
    Path("list.json").write_text("[]")
    code, _, err = run("ingest", "--from", "list.json")
    assert code == 130
    assert "what was added is kept" in err


def test_every_process_of_a_site_connects_to_the_mail_server_itself() -> None:
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"] = "papers@papers.example", "reader@papers.example"
    message.set_content("Papers.")
    with mail_server(starttls=False) as server:
        made = MailServer(f"smtp://{server.host}:{server.port}?starttls=never")
        for transport in (made, pickle.loads(pickle.dumps(made))):
            transport.send(message)
    assert (server.connections, len(server.received)) == (2, 2)


def test_nothing_heavy_is_imported_before_a_command_needs_it() -> None:
    script = (
        "import sys, paperworks.cli\n"
        "heavy = {'torch', 'numpy', 'sqlalchemy', 'sklearn', 'fastapi', 'requests', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
