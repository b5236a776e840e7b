"""Declarations refuse what could never be decided."""

from __future__ import annotations

import subprocess
import sys

import fake_papers
import pytest

from paperworks.lab import registry
from paperworks.lab.nouns import Arm, Bound, Criterion, Need, Tiers


def test_tiers_take_the_next_lower_value() -> None:
    tiers = Tiers(smoke=1, gpu=3)
    assert [tiers.at(t) for t in ("smoke", "desk", "gpu", "full")] == [1, 1, 3, 3]
    assert Tiers(desk=2).at("smoke") == 2
    with pytest.raises(ValueError, match="Tiers: got"):
        Tiers(tiny=1)
    with pytest.raises(ValueError, match="tier: got 'huge'"):
        tiers.at("huge")


def test_an_arm_is_its_target_and_options_not_its_name() -> None:
    assert Arm("x", "m:f", {"a": 1, "b": 2}).key == Arm("y", "m:f", {"b": 2, "a": 1}).key
    assert Arm("x", "m:f", {"a": 1}).key != Arm("x", "m:f", {"a": 2}).key
    assert Arm("x", "fractions:Fraction", {"numerator": 3}).build(denominator=4) == 0.75
    assert Arm.parse("m:f(percent=50.0, name='x')").options == {"percent": 50.0, "name": "x"}
    assert Arm.parse("m:f") == Arm("m:f", "m:f")
    for bad in ("m:f(", "m:f(1)", "m:f(a=b)"):
        with pytest.raises(ValueError, match="arm: got"):
            Arm.parse(bad)


def test_a_criterion_needs_something_to_lose_against() -> None:
    with pytest.raises(ValueError, match="wanted a baseline or a control"):
        Criterion("score", fake_papers.METHOD, "greater")
    with pytest.raises(ValueError, match="direction: got 'up'"):
        Criterion("score", fake_papers.METHOD, "up", fake_papers.BASELINE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale='ratio' wants"):
        Criterion("score", fake_papers.METHOD, "greater", fake_papers.BASELINE, scale="ratio")


def test_claims_refuse_metrics_and_settings_that_their_protocol_lacks() -> None:
    paper = fake_papers.paper_with_claims()
    criterion = Criterion("height", fake_papers.METHOD, "greater", fake_papers.BASELINE)
    with pytest.raises(ValueError, match="metric: got 'height'"):
        paper.measured("x", "x", source="x", protocol=fake_papers.noise, criteria=criterion)
    criterion = Criterion("score", fake_papers.METHOD, "greater", fake_papers.BASELINE)
    with pytest.raises(ValueError, match="settings: got 'depth'"):
        paper.measured("x", "x", source="x", protocol=fake_papers.noise, criteria=criterion, settings={"depth": 1})
    with pytest.raises(ValueError, match="declared twice"):
        paper.measured("better", "x", source="x", protocol=fake_papers.noise, criteria=criterion)


def test_bounds_in_words() -> None:
    assert str(Bound(equals=25_557_130)) == "= 25,557,130"
    assert str(Bound(at_least=1, at_most=2, tolerance=0.5)) == ">= 1 and <= 2 (+- 0.5)"


def test_needs_say_what_is_missing() -> None:
    cifar = Need("setting", "data", "CIFAR-10", r"cifar:.+")
    assert cifar.missing({"data": "cifar:x"}) is None
    assert cifar.missing({"data": "digits"}) == "CIFAR-10 (--set data=...)"
    assert Need("package", "no_such_package", "pip install it").missing({}) is not None
    assert Need("package", "json", "").missing({}) is None


def test_every_card_is_complete_and_every_claim_declares_what_decides_it() -> None:
    for paper in registry.papers():
        assert paper.summary
        assert paper.usage
        assert paper.provenance
        assert paper.claims
        for claim in paper.claims:
            assert claim.sentence.endswith("."), claim.id
            assert claim.bounds or claim.criteria
        for finding in paper.findings:
            assert all(paper.claim(c) for c in finding.shown_by)
    with pytest.raises(ValueError, match=r"paper: got 'nope', wanted one of .*ash"):
        registry.find("nope")


COMMAND = """
import sys
sys.argv = ["paperworks", "{}"]
from paperworks.cli import main
try:
    main()
except SystemExit:
    pass
"""
HEAVY = ("torch", "numpy", "scipy", "sklearn", "sqlalchemy", "matplotlib", "transformers", "ray", "alembic", "psutil")


@pytest.mark.parametrize(
    ("code", "forbidden", "most"),
    [
        ("import paperworks", (*HEAVY, "rich", "typer"), 10),
        (COMMAND.format("--help"), HEAVY, 600),
        (COMMAND.format("list"), HEAVY, 700),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, forbidden: tuple[str, ...], most: int) -> None:
    report = "\nimport sys; print('MODULES', *(m for m in sys.modules if not m.startswith('_')), file=sys.stderr)"
    before = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stderr.split()
    ran = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    modules = set(ran.stderr.split()) - set(before)
    assert not {m.partition(".")[0] for m in modules} & set(forbidden)
    assert len(modules) <= most
