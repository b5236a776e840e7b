"""The catalogue: the papers that are carried, and those that are announced with facts, keywords and a summary."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from urllib.parse import urlsplit

import pytest

from paperworks.feed.records import arxiv_id, normalised_title, plain_title
from paperworks.lab import registry
from paperworks.lab.nouns import Paper

AREAS = [
    *["feed", "activations", "kan", "efficiency", "swin", "spiking", "steering", "agents", "motion", "video", "neuro"]
]
CATALOGUE = registry.catalogue()
ANNOUNCED = list(registry.announced())
LISTED = tomllib.loads(files("paperworks.papers").joinpath("announced.toml").read_text(encoding="utf-8"))["paper"]

each_paper = pytest.mark.parametrize("paper", CATALOGUE, ids=lambda paper: paper.id)
each_announced = pytest.mark.parametrize("paper", ANNOUNCED, ids=lambda paper: paper.id)


def test_the_catalogue_has_45_papers_and_the_daily_papers_page_each_carried_or_announced() -> None:
    carried = {paper.id for paper in registry.papers()}
    announced = {paper.id for paper in ANNOUNCED}
    assert not carried & announced
    assert [paper.id for paper in CATALOGUE] == sorted(carried | announced)
    assert len(CATALOGUE) == 46
    assert registry.find("daily-papers") in CATALOGUE
    assert {paper.id for paper in CATALOGUE if paper.carried} == carried


def test_nothing_is_in_the_catalogue_twice() -> None:
    assert len({paper.id for paper in CATALOGUE}) == len(CATALOGUE)
    assert len({normalised_title(paper.title) for paper in CATALOGUE}) == len(CATALOGUE)
    numbers = [paper.arxiv for paper in CATALOGUE if paper.arxiv]
    assert len(set(numbers)) == len(numbers)


def test_the_list_is_ordered_by_area_and_id() -> None:
    assert sorted(LISTED, key=lambda facts: (AREAS.index(facts["area"]), facts["id"])) == LISTED


@each_paper
def test_facts_are_sound(paper: Paper) -> None:
    assert paper.area in AREAS
    assert paper.title == plain_title(paper.title)
    assert paper.n_authors >= 1
    assert paper.keywords == tuple(dict.fromkeys(paper.keywords)), "no keyword twice"
    for keyword in paper.keywords:
        assert keyword == " ".join(keyword.lower().split()) != ""
    if paper.code:
        address = urlsplit(paper.code)
        assert (address.scheme, bool(address.hostname), address.path.strip("/") != "") == ("https", True, True)


@each_paper
def test_dates_agree_with_the_arxiv_number(paper: Paper) -> None:
    assert type(paper.date) is date, "a day without a time"
    assert paper.date <= datetime.now(UTC).date()
    if paper.arxiv:
        assert arxiv_id(paper.arxiv) == (paper.arxiv, None), "without a version"
        month = date(2000 + int(paper.arxiv[:2]), int(paper.arxiv[2:4]), 1)
        # A paper handed in on the last days of a month is numbered in the next; a later version dates up to a year on.
        assert month - timedelta(days=7) <= paper.date < month + timedelta(days=365)


@each_announced
def test_an_announced_paper_has_facts_and_no_method(paper: Paper) -> None:
    assert (paper.carried, paper.method, paper.usage, paper.claims, paper.findings) == (False, "", "", [], [])
    assert 4 <= len(paper.keywords) <= 8
    if paper.authors:
        assert len(paper.authors.split(", ")) == paper.n_authors


@each_announced
def test_a_summary_is_two_to_four_sentences_of_plain_text(paper: Paper) -> None:
    assert 150 <= len(paper.summary) <= 900
    assert paper.summary == plain_title(paper.summary), "one paragraph, without LaTeX"
    assert paper.summary[0].isupper()
    assert paper.summary[-1] == "."
    assert 2 <= len(re.findall(r"[.?](?= |$)", paper.summary)) <= 4
