"""The nearest vectors by pgvector are those that are found in memory. Needs a PostgreSQL server that has pgvector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa

from paperworks.data.synthetic_papers import synthetic_papers
from paperworks.feed import PaperRecord, Search, Store, pgvector
from paperworks.feed.meaning import unit
from paperworks.feed.pgvector import PgVectors, is_there
from paperworks.feed.vectors import Vectors


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    with Store(postgres_url) as opened:
        if not is_there(opened):
            pytest.skip("the PostgreSQL server has no pgvector")
        opened.add(PaperRecord(**facts) for facts in synthetic_papers(300))
        yield opened


def test_the_nearest_are_those_found_in_memory(store: Store) -> None:
    search = Search(store)
    search.refresh()
    held = search._index.current().vectors
    assert isinstance(held, PgVectors)
    assert len(held) == 300
    numbers = np.arange(1, 301)
    memory = Vectors(held.dimensions)
    memory.put(numbers, held.get(numbers))
    rng = np.random.default_rng(0)
    for among in (None, np.sort(rng.choice(numbers, 40, replace=False))):
        for query in unit(rng.standard_normal((5, held.dimensions))):
            found, wanted = held.nearest(query, 25, among), memory.nearest(query, 25, among)
            assert [number for number, _ in found] == [number for number, _ in wanted]
            np.testing.assert_allclose([p for _, p in found], [p for _, p in wanted], atol=1e-5)
    assert held.nearest(np.zeros(held.dimensions, np.float32), 5) == []
    with pytest.raises(KeyError, match="numbers: got"):
        held.get(np.array([999]))


def test_many_vectors_are_found_by_an_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector, "EXACT", 100)
    search = Search(store)
    search.refresh()
    held = search._index.current().vectors
    assert isinstance(held, PgVectors)
    with store.database.read() as connection:
        made = connection.scalars(
            sa.text("SELECT indexdef FROM pg_indexes WHERE indexname LIKE 'search\\_near%'")
        ).all()
    assert len(made) == 1
    assert "hnsw" in made[0]
    own = held.get(np.array([7]))[0]
    assert held.nearest(own, 3)[0] == (7, pytest.approx(1, abs=1e-4))
    store.add(PaperRecord(**facts) for facts in synthetic_papers(400))
    search.refresh()  # another fit, and the index of the one before goes
    with store.database.read() as connection:
        later = connection.scalars(
            sa.text("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'search\\_near%'")
        ).all()
    assert len(later) == 1
    assert later[0] not in made[0]


def test_a_server_without_the_extension_goes_without(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector, "is_there", lambda _: False)
    with Store(store_url) as opened:
        opened.add(PaperRecord(**facts) for facts in synthetic_papers(30))
        search = Search(opened)
        search.refresh()
        assert isinstance(search._index.current().vectors, Vectors)
