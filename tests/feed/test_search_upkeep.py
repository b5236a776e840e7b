"""A search keeps up with its store, and keeps what it made in it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import numpy as np
import pytest
from feed.search_world import NOON, PAPERS, catalogue, ids, search, store

from paperworks.feed import PaperRecord, Search, Store
from paperworks.feed.meaning import LSA
from paperworks.lab.store.database import StoreError

__all__ = ["catalogue", "search", "store"]


def test_new_papers_are_found_at_once_and_changed_ones_as_they_are(store: Store, search: Search) -> None:
    assert search.query("glaciers").total == 0
    before = search.model
    store.add([PaperRecord("Glaciers and Networks", id="2405.00005", abstract="Ice flows.")], at=NOON)
    found = search.query("glaciers")
    assert ids(found.items)[0] == "2405.00005"
    assert search.model != before  # five papers are a fifth more than four
    # a change that is said to be of an earlier time
    earlier = datetime(2020, 1, 1, tzinfo=UTC)
    store.add(
        [PaperRecord("Volcanoes and Networks", id="2405.00005v2", abstract="Lava flows.", source="arxiv")], earlier
    )
    assert all("words" not in item.parts for item in search.query("glaciers").items)
    assert ids(search.query("volcanoes").items)[0] == "2405.00005"
    assert "meaning" in search.query("lava networks").items[0].parts


def test_votes_change_nothing_that_is_kept(store: Store, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    search.query("networks")
    store.vote("2401.00001", "somebody", NOON)
    monkeypatch.setattr(type(search._index), "_renewed", lambda *_: pytest.fail("was made anew"))
    assert search.query("networks").total > 0


def test_counts_of_the_source_change_nothing_that_is_kept(store: Store, search: Search) -> None:
    search.query("networks")
    tick = search._index.tick
    store.add([PaperRecord("A Study of Birdsong", id="2402.00002", upvotes=12, comments=3, source="daily")], at=NOON)
    search.query("networks")
    assert search._index.tick == tick
    store.add([PaperRecord("A Study of Birdsong", id="2402.00002", code="https://example.org/birds")], at=NOON)
    assert ids(search.query("birdsong", {"code": True}).items) == ["2402.00002"]
    assert search._index.tick > tick


def test_accents_and_punctuation_are_no_part_of_a_word(store: Store, search: Search) -> None:
    store.add([PaperRecord("Gödel/Nöther at 2.5D: e.g. U-Net", id="2405.00006")], at=NOON)
    for text in ("godel", "nöther", "Noether nother", "5d", "unet"):
        assert ids(search.query(text).items)[0] == "2405.00006", text
        assert {"words", "typos"} & set(search.query(text).items[0].parts)


def test_a_deleted_paper_is_gone(store: Store, search: Search) -> None:
    from sqlalchemy import delete

    from paperworks.feed.tables import papers

    assert search.query("birdsong").total > 0
    store.database.write(lambda connection: connection.execute(delete(papers).where(papers.c.key == "2402.00002")))
    assert "2402.00002" not in ids(search.query("birdsong finches").items)
    assert len(search._index.current().vectors) == 3


def test_another_process_reads_the_fit(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(store_url) as store:
        store.add(PAPERS, at=NOON)
        first = Search(store)
        wanted = first.query("songs of finches")
        model = first.model
    monkeypatch.setattr(LSA, "fit", lambda *_: pytest.fail("was fitted again"))
    with Store(store_url) as store:
        second = Search(store)
        assert second.model == model
        assert second.query("songs of finches").items == wanted.items


def test_a_store_that_cannot_be_written_is_searched_all_the_same(
    store: Store, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("read only")

    monkeypatch.setattr(store.database, "write", refuse)
    assert ids(search.query("songs finches").items)[0] in ("2402.00002", "2403.00003")


def test_threads_share_a_search_while_papers_come(store: Store, search: Search) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                assert "2402.00002" in ids(search.query("birdsong").items)
                assert len(search.similar("2402.00002")) >= 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(10, 22):
        store.add([PaperRecord(f"Paper number{number} on birdsong", id=f"2405.000{number}")], at=NOON)
        assert f"2405.000{number}" in ids(search.query(f"number{number}").items)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


class Counting:
    """An embedder of three dimensions that counts what it is asked for."""

    name = "counting-1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[1 + text.count("a"), 1 + text.count("e"), 1 + text.count("o")] for text in texts], np.float32)


def test_vectors_of_a_model_are_kept_and_only_new_texts_are_embedded(store: Store) -> None:
    model = Counting()
    wanted = Search(store, model).query("songs")
    assert wanted.items[0].parts["meaning"] > 0
    again = Counting()
    search = Search(store, again)
    assert search.query("songs").items == wanted.items
    assert not any("Birdsong" in text and "\n" in text for text in again.asked)
    store.add([PaperRecord("New Paper", id="2405.00005", abstract="Of songs.")], at=NOON)
    search.query("songs")
    assert [text.splitlines()[0] for text in again.asked if "New Paper" in text] == ["New Paper. New Paper. Of songs."]


def test_an_embedder_that_gives_no_vectors_is_refused(store: Store) -> None:
    class Wrong:
        name = "wrong"

        def embed(self, texts: list[str]) -> np.ndarray:
            return np.full((len(texts), 2), np.nan)

    with pytest.raises(ValueError, match="embedder: wrong gave"):
        Search(store, Wrong()).query("songs")
