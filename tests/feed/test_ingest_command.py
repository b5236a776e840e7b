"""``paperworks ingest`` where a source breaks off, and what it leaves for the first search."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feed.loopback import Answer, Asked, Loopback, loopback
from sqlalchemy import func, select

from paperworks import cli_feed
from paperworks.cli import main
from paperworks.feed.index import models
from paperworks.feed.store import Store
from paperworks.feed.tables import embeddings
from paperworks.lab import registry

Run = Callable[..., tuple[int, str, str]]
OAI = (
    '<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords>{records}'
    "<resumptionToken>{token}</resumptionToken></ListRecords></OAI-PMH>"
)
RECORD = (
    '<record><header/><metadata><arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>2604.{number:05}</id>'
    "<title>Paper {number}</title></arXiv></metadata></record>"
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call a command with a store and a cache of its own, and no cards."""
    monkeypatch.setenv("PAPERWORKS_DB", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "catalogue", list)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paperworks", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as state:
        yield state


@pytest.mark.parametrize("second", [(404, {}, b"gone"), (200, {}, b"<OAI-PMH"), (200, {}, b"<html></html>")])
def test_what_was_harvested_before_a_page_that_is_none_is_kept(
    run: Run, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: Answer
) -> None:
    monkeypatch.setattr("paperworks.feed.clients._Source._wait_for_turn", lambda self: None)
    first = OAI.format(records="".join(RECORD.format(number=n) for n in range(3)), token="more").encode()

    def answer(asked: Asked) -> Answer:
        return second if "resumptionToken" in asked.query else (200, {}, first)

    server.answer = answer
    command = ("ingest", "--source", "oai", "--since", "2026-04-01", "--base-url", server.url)
    code, out, err = run(*command)
    assert code == 1
    assert "3 records: 3 new" in out
    assert err.startswith("paperworks: ")
    code, out, _ = run(*command, "--json")
    told = json.loads(out)
    assert (code, told["read"], told["unchanged"], bool(told["error"])) == (1, 3, 3, True)
    with Store(tmp_path / "store.sqlite") as store:
        assert len(store) == 3
    server.answer = lambda asked: second
    code, out, err = run(*command)  # nothing was understood: no result, and a command that was wrong
    assert (code, out) == (2, "")


def test_the_first_search_after_an_ingest_finds_the_papers_indexed(run: Run, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps([{"paper": {"id": f"2604.{n:05}", "title": f"Wings of kind {n}"}} for n in range(5)]))
    assert run("ingest", "--from", str(saved))[0] == 0
    with Store(tmp_path / "store.sqlite") as store, store.database.read() as connection:
        [fitted] = connection.execute(select(models.c.papers, models.c.version)).all()
        assert fitted.papers == 5
        kept = select(func.count()).where(embeddings.c.model == fitted.version)
        assert connection.scalar(kept) == 5


def test_a_secret_that_another_process_is_writing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAPERWORKS_SECRET", raising=False)
    path = tmp_path / "store.sqlite.secret"
    path.touch(0o600)
    timer = threading.Timer(0.1, path.write_text, ["written meanwhile\n"])
    timer.start()
    assert cli_feed._secret(str(tmp_path / "store.sqlite")) == "written meanwhile"
    timer.join()
