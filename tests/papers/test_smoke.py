"""Every paper at the smoke tier: nothing errs, exact claims are decided, and controls lose."""

from __future__ import annotations

from pathlib import Path

import pytest

from paperworks.lab import registry
from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.report import collect, render_html, report_json
from paperworks.lab.runner import Watcher, run
from paperworks.lab.store import open_store

IDS = [paper.id for paper in registry.papers()]


@pytest.mark.parametrize("id", IDS)
def test_the_claims_run_and_the_page_is_made(id: str, tmp_path: Path) -> None:
    paper = registry.find(id)
    with open_store(tmp_path / "smoke.sqlite") as store:
        verdicts = run([paper], store, LocalEngine(2), tier="smoke")
        assert {v.claim: v.reason for v in verdicts if v.status == "error"} == {}
        for verdict in verdicts:
            if verdict.status == "not run":
                assert verdict.reason.startswith("needs "), verdict.claim
            elif verdict.kind == "exact":
                assert verdict.status in ("holds", "fails")
            else:
                assert verdict.status == "inconclusive", "two seeds decide nothing"
        planned: list[tuple[int, int]] = []
        again = run([paper], store, LocalEngine(2), tier="smoke", watcher=Watcher(lambda t, r: planned.append((t, r))))
        assert planned[0][0] == planned[0][1], "everything is reused"
        assert [v.comparisons for v in again] == [v.comparisons for v in verdicts]
        report = collect(store, [paper], tier="smoke")
    assert paper.title in render_html(report)
    assert len(report_json(report)["papers"][0]["claims"]) == len(paper.claims)


@pytest.mark.parametrize("id", IDS)
def test_every_figure_can_be_drawn_or_says_what_to_run(id: str) -> None:
    from paperworks.lab.nouns import resolve

    for figure in registry.find(id).figures:
        assert callable(resolve(figure.target))
        assert figure.caption
