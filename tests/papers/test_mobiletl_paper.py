"""The card of MobileTL: facts, exact claims that hold and can be lost, needs, and the benchmark."""

import importlib.util
from functools import partial

import pytest
import torch
from torch import nn

import paperworks.efficiency.mobiletl as method
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import MINIMUM_SEEDS, Need, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import mobiletl_checks
from paperworks.papers.protocols.mobilenets import mobilenet_v2

paper = find("mobiletl")
EXACT = [claim for claim in paper.claims if claim.kind == "exact"]


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def test_facts():
    assert paper.arxiv == "2212.03246"
    assert len(paper.authors.split(", ")) == paper.n_authors == 4


def test_the_usage_on_the_card_runs():
    scope = {"model": mobilenet_v2(3, width=0.35), "torch": torch}
    exec(paper.usage.replace("224", "64"), scope)
    assert scope["model"] is scope["handle"].model
    assert scope["choice"].blocks == 17


def test_every_measured_criterion_has_enough_seeds_and_something_to_lose_to():
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert at_tier(criterion.seeds, "desk") >= MINIMUM_SEEDS
            assert criterion.margin >= 0 or criterion.control is not None, "a baseline would keep a negative margin"


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim):
    for need in claim.needs:
        pytest.importorskip(need.name, reason="a network of that library")
    assert unmet(claim.id) == []


class NoSign(nn.Module):
    """An activation with the slope of its own."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.activation(z)


def test_another_slope_loses_its_claim(monkeypatch):
    monkeypatch.setattr(mobiletl_checks, "_BySign", NoSign)
    assert unmet("gradients-are-exact") == ["train mode: largest relative difference of a gradient"]


def test_a_norm_that_keeps_its_input_loses_the_memory(monkeypatch):
    fine_tuning = method.block_memory
    monkeypatch.setattr(method, "block_memory", lambda *a, **k: fine_tuning(*a, **{**k, "method": "ft"}))
    assert len(unmet("a-block-keeps-half")) == 2


def test_bytes_for_bits_lose_their_claim(monkeypatch):
    monkeypatch.setattr(mobiletl_checks, "signed_activation", partial(method.signed_activation, pack_bits=False))
    assert {"bits a value, sign", "bits a value, two-bit"} <= set(unmet("two-bits-are-nearer"))


def test_what_is_needed_is_said_and_met_by_what_the_user_gives():
    def missing(**settings: str) -> list[str]:
        needs: tuple[Need, ...] = paper.claim("costs-little-on-cifar").needs
        return [need.name for need in needs if need.missing(settings)]

    assert missing() == ["data", "weights"]
    assert missing(data="digits", weights="x.pth") == ["data"]
    assert missing(data="cifar:x", weights="x.pth") == []


def test_a_benchmark_steps_the_same_blocks():
    [case] = [case for case in find_cases("mobiletl") if "MobileNetV3-Large" in case.name and "step" in case.name]
    assert case.method in case.contenders
    loss = case.contenders[case.method]()()
    assert torch.isfinite(loss)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_peer_that_is_not_installed_is_an_import_error():
    [case] = [case for case in find_cases("mobiletl") if "MobileNetV2" in case.name and "step" in case.name]
    with pytest.raises(ImportError):
        case.contenders["timm freeze"]()
