"""The card of ProSparse: facts, exact claims that hold and can fail, needs, and a whole run at the smallest tier."""

from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("transformers", reason="the language models are those of transformers")

from efficiency.prosparse.gated_models import small_llama, token_batches
from in_process import Here

import paperworks.efficiency.prosparse as method
from paperworks.lab.nouns import resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial

paper = find("prosparse")
EXACT = [claim for claim in paper.claims if claim.kind == "exact"]
SMALL = {"base_steps": "2", "steps": "10", "layers": "1", "dim": "16", "heads": "2", "validation_windows": "8"}


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def test_facts():
    assert paper.arxiv == "2402.13516"
    assert len(paper.authors.split(", ")) == paper.n_authors == 11


def test_the_usage_on_the_card_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    exec(paper.usage, {"model": model, "batches": token_batches(2)})
    assert isinstance(model.model.layers[0].mlp, method.SparseGatedMLP)
    assert float(model.model.layers[0].mlp.act_fn.threshold) == pytest.approx(0.01)
    assert (tmp_path / "run.pt").exists()


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim):
    assert unmet(claim.id) == []


class Strict(method.FATReLU):
    """Drops what equals the threshold, as the published operators do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(x <= self.threshold, 0.0)


class Linear(method.SparsityRegularisation):
    """Rises in straight lines from the start of a stage to its end."""

    def factor(self, step: int) -> float:
        ends = [self.start, *self.steps]
        for (a, b), (low, high) in zip(
            zip(ends, self.steps, strict=False), zip([0.0, *self.peaks], self.peaks, strict=False), strict=True
        ):
            if a < step <= b:
                return low + (high - low) * (step - a) / (b - a)
        return 0.0


def test_a_broken_method_loses_its_exact_claim(monkeypatch):
    monkeypatch.setattr(method, "FATReLU", Strict)
    assert unmet("fatrelu-keeps-its-threshold") == ["at the threshold: output / input"]
    monkeypatch.setattr(method, "published_schedule", lambda name: Linear([0.1, 0.2], [20, 40], start=10))
    assert "first stage: largest |difference| to its peak" in unmet("factor-follows-the-schedule")


def test_dense_products_lose_the_claim_on_weights(monkeypatch):
    monkeypatch.setattr(method.SparseGatedMLP, "_is_sparse", lambda self, x: False)
    monkeypatch.setattr("paperworks.papers.prosparse.SIZES", {"7B": (64, 172, 0.8932), "13B": (80, 216, 0.888)})
    assert {name for name in unmet("share-of-the-weights") if "NaN" in name} == {
        "7B: change with all other weights NaN", "13B: change with all other weights NaN",
    }  # fmt: skip


def test_what_is_needed_is_said():
    def missing(id: str, **settings: str) -> list[str]:
        return [n.name for n in paper.claim(id).needs if n.kind == "setting" and n.missing(settings)]

    for id in ("published-model-is-sparse", "predictors-find-the-active-channels"):
        assert paper.claim(id).kind == "needs"
        assert missing(id) == ["checkpoint", "documents"]
        assert missing(id, checkpoint="a", documents="b") == []


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The claims on training and one on time at the smallest tier, two of them with their controls too."""
    timed, shifted = "whole-network-twice-as-fast-in-float32", "threshold-adds-sparsity-for-free"
    trained = [c.id for c in paper.claims if c.protocol is not None and c.protocol.name == "activation sparsity"]
    with open_store(tmp_path_factory.mktemp("store") / "lab.sqlite") as store:
        verdicts = run([paper], store, Here(), tier="smoke", settings=SMALL, claims=[*trained, timed])
        controls = run([paper], store, Here(), tier="smoke", settings=SMALL, claims=[shifted, timed], control=True)
        yield store, [*verdicts, *controls]


def test_too_few_seeds_decide_nothing_with_or_without_controls(ran):
    assert len(ran[1]) == 7
    assert {verdict.status for verdict in ran[1]} == {"inconclusive"}, [v.reason for v in ran[1]]


def test_the_figure_shows_every_recipe(ran):
    [drawn] = draw_all(collect(ran[0], [paper]))["prosparse"]
    assert not drawn.missing
    text = "".join(ElementTree.fromstring(drawn.svg.replace("xlink:href", "href")).itertext())
    for words in ("ReLU alone", "progressive L1", "constant L1", "progressive L1 and threshold"):
        assert words in text
