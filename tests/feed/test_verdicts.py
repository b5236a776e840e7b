"""What the catalogue says of verdicts: counts, and verdicts that changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from paperworks.feed.store import Store
from paperworks.feed.verdicts import Flip, Verdicts
from paperworks.lab import registry
from paperworks.lab.records import Verdict

MORNING = datetime(2026, 4, 24, 8, 30, tzinfo=UTC)
CLAIM = registry.find("ash").claims[0]
FIRST = Verdict("ash", CLAIM.id, "exact", "holds", "desk", "cpu", created=MORNING)


def test_counts_follow_the_store(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        verdicts = Verdicts(store)
        total = len(registry.find("ash").claims)
        before = verdicts.counts("ash")
        assert before is not None
        assert before["not run"] == total
        assert verdicts.counts("no-such-card") is None
        assert verdicts.counts(None) is None
        generation = verdicts.generation()
        store.lab.put_verdict(FIRST)
        assert verdicts.generation() != generation
        after = verdicts.counts("ash")
        assert after is not None
        assert (after["holds"], after["not run"]) == (1, total - 1)
        paper = verdicts.paper("ash")
        assert paper is not None
        assert paper["claims"][0]["status"] == "holds"


def test_a_verdict_that_changed_is_a_flip_and_one_that_did_not_is_none(tmp_path: Path) -> None:
    day = timedelta(days=1)
    with Store(tmp_path / "s.sqlite") as store:
        verdicts = Verdicts(store)
        for status, at, tier in (
            ("holds", MORNING, "desk"),
            ("holds", MORNING + day, "desk"),
            ("fails", MORNING + 2 * day, "desk"),
            ("inconclusive", MORNING + 2 * day, "smoke"),  # another tier is another question
        ):
            store.lab.put_verdict(replace(FIRST, status=status, created=at, tier=tier))
        wanted = Flip("ash", CLAIM.id, CLAIM.sentence, "holds", "fails", "desk", MORNING + 2 * day)
        assert verdicts.flips(MORNING, MORNING + 3 * day) == [wanted]
        assert verdicts.flips(MORNING + 2 * day, MORNING + 3 * day) == []
        assert verdicts.flips(MORNING, MORNING + day) == []
        with pytest.raises(ValueError, match="time zone"):
            verdicts.flips(datetime(2026, 4, 24), MORNING)


def test_figures_are_those_of_the_report(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        verdicts = Verdicts(store)
        [figure] = verdicts.figures("ash")
        assert figure.missing
        assert verdicts.figures("ash") is verdicts.figures("ash")
