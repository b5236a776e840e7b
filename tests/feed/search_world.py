"""Four papers to search for, and a store of them on either database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime

import pytest

from paperworks.feed import PaperRecord, Search, Store
from paperworks.feed.search import Item
from paperworks.lab import registry

__all__ = ["NOON", "PAPERS", "catalogue", "ids", "search", "store"]

NOON = datetime(2026, 4, 24, 12, tzinfo=UTC)

PAPERS = [
    PaperRecord(
        "Sparse Attention in Deep Networks",
        id="2401.00001",
        abstract="We keep few weights. Attention scores below a threshold are dropped before the softmax.",
        authors=["Jane Doe", "Jörg Müller"],
        published=date(2024, 1, 10),
        code="https://example.org/sparse",
        area="efficiency",
        source="arxiv",
    ),
    PaperRecord(
        "A Study of Birdsong",
        id="2402.00002",
        abstract="Birds learn their songs from tutors. We record finches and decode the syllables they sing.",
        authors=["Ann Lee"],
        published=date(2024, 2, 10),
        keywords=["zebra finch", "vocal learning"],
        area="neuro",
        source="arxiv",
    ),
    PaperRecord(
        "Spiking Networks that Sing",
        id="2403.00003",
        abstract="Spiking neurons are trained with surrogate gradients to produce the songs of finches.",
        authors=["Doe Smith"],
        published=date(2024, 3, 10),
        first_seen=date(2024, 3, 12),
        area="spiking",
        source="arxiv",
    ),
    PaperRecord(
        "AF-KAN: Rational Edges",
        id="2404.00004",
        abstract="Edges of a network carry rational functions. Pruning removes those that stay flat.",
        authors=["Jane Roe"],
        first_seen=date(2024, 4, 10),
        area="kan",
        source="daily",
    ),
]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        opened.add(PAPERS, at=NOON)
        yield opened


@pytest.fixture
def search(store: Store) -> Search:
    return Search(store)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    with Store(tmp_path_factory.mktemp("catalogue") / "store.sqlite") as opened:
        opened.add_cards(registry.catalogue())
        yield Search(opened)


def ids(items: list[Item]) -> list[str | None]:
    return [item.paper.id for item in items]
