"""What every card has to keep to."""

from __future__ import annotations

import importlib.util

import pytest

from paperworks.lab import registry
from paperworks.lab.nouns import MINIMUM_SEEDS, Paper, at_tier

CARDS = pytest.mark.parametrize("paper", list(registry.papers()), ids=lambda paper: paper.id)


@CARDS
def test_every_measured_criterion_has_enough_seeds_and_something_to_lose_to(paper: Paper) -> None:
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert at_tier(criterion.seeds, "desk") >= MINIMUM_SEEDS, claim.id
            assert criterion.baseline is not None or criterion.control is not None, claim.id


@CARDS
def test_the_method_is_there_and_findings_are_shown_by_claims(paper: Paper) -> None:
    assert importlib.util.find_spec(paper.method) is not None
    claims = {claim.id for claim in paper.claims}
    for finding in paper.findings:
        assert finding.shown_by, finding.text
        assert set(finding.shown_by) <= claims, finding.text
