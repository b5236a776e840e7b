"""The card of S-KAN: its exact claims hold, its measured ones can be lost, its figure draws."""

import pytest

from paperworks.lab.nouns import BestOf, resolve
from paperworks.lab.trial import Trial
from paperworks.papers.s_kan import FAMILIES, paper

EXACT = [claim for claim in paper.claims if claim.kind == "exact"]


@pytest.mark.parametrize("claim", EXACT, ids=lambda c: c.id)
def test_exact_claims_hold(claim):
    found = resolve(claim.target)(Trial(0))
    assert set(found) == set(claim.bounds)
    for label, bound in claim.bounds.items():
        assert bound.met(found[label]), f"{label}: {found[label]}, wanted {bound}"


def test_every_single_family_is_compared():
    claim = paper.claim("varies-less-than-any-single-family")
    assert [c.baseline.options["basis"] for c in claim.criteria] == list(FAMILIES)


def test_selection_never_uses_an_arm_of_another_size():
    for claim in paper.claims:
        for criterion in claim.criteria:
            sides = [criterion.method, criterion.baseline]
            widths = {a.options.get("widths") for s in sides if isinstance(s, BestOf) for a in s.arms}
            assert len(widths) <= 1


def test_findings_are_shown_by_claims_of_the_card():
    known = {claim.id for claim in paper.claims}
    assert all(set(finding.shown_by) <= known for finding in paper.findings)
    assert len(paper.findings) == 3
