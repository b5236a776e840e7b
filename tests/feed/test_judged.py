"""The judged queries are well formed, cover the catalogue, and each is of the kind that it says."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

from paperworks.feed.records import normalised_title
from paperworks.lab import registry
from paperworks.lab.nouns import Paper

KINDS = ("name", "words", "paraphrase", "typo")
CATALOGUE = {paper.id: paper for paper in registry.catalogue()}
QUERIES: list[dict[str, Any]] = tomllib.loads(
    files("paperworks.feed").joinpath("judged.toml").read_text(encoding="utf-8")
)["query"]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.casefold())


def text_of(paper: Paper) -> str:
    return " ".join([paper.id, paper.title, *paper.keywords, paper.summary])


VOCABULARY = {word for paper in CATALOGUE.values() for word in words(text_of(paper))}


def of_kind(kind: str) -> pytest.MarkDecorator:
    queries = [query for query in QUERIES if query["kind"] == kind]
    return pytest.mark.parametrize("query", queries, ids=lambda query: query["text"])


def meant(query: dict[str, Any]) -> list[Paper]:
    return [CATALOGUE[id] for id, grade in query["relevant"].items() if grade == 3]


def edits(a: str, b: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other."""
    rows = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 2 : i] == b[j - 2 : j][::-1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


def test_every_query_has_the_same_form() -> None:
    assert len(QUERIES) >= 64
    for query in QUERIES:
        assert set(query) == {"text", "kind", "split", "relevant"}
        assert query["text"] == " ".join(query["text"].split()) != ""
        assert query["kind"] in KINDS
        assert query["split"] in ("tune", "test")
        assert query["relevant"], query["text"]
        assert set(query["relevant"]) <= set(CATALOGUE), query["text"]
        assert all(type(grade) is int and 1 <= grade <= 3 for grade in query["relevant"].values()), query["text"]
        assert 3 in query["relevant"].values(), query["text"]


def test_kinds_and_halves_are_of_one_size() -> None:
    sizes = Counter((query["kind"], query["split"]) for query in QUERIES)
    assert set(sizes) == {(kind, split) for kind in KINDS for split in ("tune", "test")}
    assert len(set(sizes.values())) == 1


def test_no_query_is_there_twice() -> None:
    assert len({normalised_title(query["text"]) for query in QUERIES}) == len(QUERIES)


def test_every_paper_is_what_some_query_means() -> None:
    wanted = {id for id in CATALOGUE if id != "daily-papers"}  # the page itself is no paper
    assert {paper.id for query in QUERIES for paper in meant(query)} == wanted


def test_each_half_has_broad_queries() -> None:
    broad = Counter(query["split"] for query in QUERIES if len(query["relevant"]) >= 3)
    assert min(broad["tune"], broad["test"]) >= 8


@of_kind("name")
def test_a_name_stands_in_the_paper_it_means(query: dict[str, Any]) -> None:
    (paper,) = meant(query)
    assert set(words(query["text"])) <= set(words(text_of(paper)))


@of_kind("words")
def test_words_are_those_of_the_catalogue(query: dict[str, Any]) -> None:
    assert set(words(query["text"])) <= VOCABULARY


@of_kind("paraphrase")
def test_a_paraphrase_avoids_the_title(query: dict[str, Any]) -> None:
    for paper in meant(query):
        title = {word.rstrip("s") for word in words(paper.title)}
        shared = {word for word in words(query["text"]) if len(word) > 3 and word.rstrip("s") in title}
        assert shared <= {"from", "with"}


@of_kind("typo")
def test_a_typo_is_a_slip_or_two_away_from_a_word(query: dict[str, Any]) -> None:
    unknown = [word for word in words(query["text"]) if word not in VOCABULARY]
    assert unknown, "as spelt it stands nowhere in the catalogue"
    for word in unknown:
        assert min(edits(word, known) for known in VOCABULARY if abs(len(known) - len(word)) <= 2) <= 2
