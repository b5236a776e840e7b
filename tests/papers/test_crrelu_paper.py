"""The card of CRReLU: its numbers against closed forms, checks that can fail, and a whole run at the smallest tier."""

import importlib.util
import math
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
import torch
from in_process import Here
from scipy.integrate import quad

import paperworks.activations.crrelu as method
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import Need, resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial

paper = find("crrelu")
EXACT = [claim for claim in paper.claims if claim.kind == "exact"]
SMALL = {"steps": "2", "layers": "1", "dim": "16", "heads": "2"}


def observed(id: str) -> dict[str, float]:
    return dict(resolve(paper.claim(id).target)(Trial()))


def unmet(id: str) -> list[str]:
    found = observed(id)
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


# --- the card ---


def test_facts():
    assert paper.arxiv == "2405.12954"
    assert len(paper.authors.split(", ")) == paper.n_authors == 8


def test_the_usage_on_the_card_runs():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2), torch.nn.GELU())
    code = paper.usage.replace("# timm", "# ")
    exec(code, scope := {"model": model})
    assert scope["report"].replaced == ["1", "3"]
    assert isinstance(model[1], method.CRReLU)


# --- exact claims ---


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim):
    for need in claim.needs:
        pytest.importorskip(need.name, reason="counts on the networks of that library")
    assert unmet(claim.id) == []


def test_slopes_are_those_of_closed_forms():
    found = observed("correction-lowers-the-entropy")
    phi = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    # c = p' = -z phi for the identity, and int z^2 phi^2 = 1 / (4 sqrt pi)
    assert found["identity: slope"] == pytest.approx(-1 / (4 * math.sqrt(math.pi)), rel=1e-8)
    # tanh: f''/f' = -2 tanh, so c = phi (2 tanh z - z)
    tanh = quad(lambda z: (phi(z) * (2 * math.tanh(z) - z) * math.cosh(z)) ** 2, -12, 12)[0]
    assert found["tanh: slope"] == pytest.approx(-tanh, rel=1e-6)


def test_the_entropy_of_the_positive_branch_by_another_integral():
    density = quad(lambda z: math.exp(-z * z) * (1 - z * z) / math.sqrt(2 * math.pi), 0, 12)[0]
    assert density == pytest.approx(1 / (4 * math.sqrt(2)), rel=1e-9)
    assert observed("entropy-rises-with-eps")["dH/deps at 0"] == pytest.approx(density, abs=1e-6)


def relu_minus(x: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.relu(x) - eps * x * torch.exp(-x * x / 2)


def uphill(f: Callable[[torch.Tensor], torch.Tensor], density: object, z: torch.Tensor) -> torch.Tensor:
    return -torch.exp(-z * z / 2) * z**2


BROKEN = {
    "the sign of eps": ("entropy-rises-with-eps", "crrelu", relu_minus),
    "another direction": ("correction-lowers-the-entropy", "eafo_direction", uphill),
    "another bell": ("crrelu-is-eafo-of-relu", "CRReLU", lambda eps: lambda x: relu_minus(x, -eps / 2)),
    "a worst that is not": ("worst-activation-is-the-maximum", "WorstActivation", lambda d, low, high: torch.tanh),
    "another maximum": ("worst-activation-is-the-maximum", "activation_entropy", lambda f, density: 1e-3),
    "another sigmoid": ("sigmoid-is-the-worst-for-logistic-input", "LogisticDensity", method.NormalDensity),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken, monkeypatch):
    id, name, instead = broken
    monkeypatch.setattr(method, name, instead)
    assert unmet(id)


def test_a_layer_without_its_scalar_loses_the_count(monkeypatch):
    pytest.importorskip("transformers", reason="counts on the networks of that library")
    monkeypatch.setattr(method, "CRReLU", torch.nn.ReLU)
    assert "ViT-Tiny: added" in unmet("one-scalar-a-layer")


# --- needs ---


def test_what_is_needed_is_said_and_met_by_what_the_user_gives():
    def missing(id: str, **settings: str) -> list[str]:
        needs: tuple[Need, ...] = paper.claim(id).needs
        return [need.name for need in needs if need.kind == "setting" and need.missing(settings)]

    assert missing("more-accurate-on-cifar") == ["data"]
    assert missing("more-accurate-on-cifar", data="imagefolder:x") == ["data"]
    assert missing("more-accurate-on-cifar", data="cifar:x") == []
    tuning = "better-than-gelu-in-preference-tuning"
    assert missing(tuning) == ["pairs", "language_model"]
    assert missing(tuning, pairs="x.jsonl", language_model="gpt2") == ["language_model"], "a model with random weights"
    assert missing(tuning, pairs="x.jsonl", language_model="openai-community/gpt2") == []


# --- a whole run ---


@pytest.fixture
def store(tmp_path):
    pytest.importorskip("transformers", reason="the language models are those of transformers")
    with open_store(tmp_path / "lab.sqlite") as opened:
        yield opened


def test_controls_run_and_too_few_seeds_decide_nothing(store):
    claims = [claim.id for claim in paper.claims if claim.protocol is not None]
    controls = run(
        [paper], store, Here(), tier="smoke", settings={**SMALL, "shape": "4x65x192"}, claims=claims, control=True
    )
    assert {verdict.status for verdict in controls} == {"inconclusive", "not run"}, [v.reason for v in controls]


def test_the_figure_shows_the_learned_eps(store):
    claims = [claim.id for claim in paper.claims if claim.id.startswith("learned-eps-ends-negative")]
    run([paper], store, Here(), tier="smoke", settings=SMALL, claims=claims)
    [drawn] = draw_all(collect(store, [paper]))["crrelu"]
    assert not drawn.missing
    text = "".join(ElementTree.fromstring(drawn.svg.replace("xlink:href", "href")).itertext())
    for words in ("ReLU", "eps = +0.3", "ViT", "GPT-2", "start, +0.01"):
        assert words in text


# --- the benchmark ---


@pytest.mark.parametrize("kind", ["forward", "forward and backward"])
def test_what_is_timed_is_the_same_function(kind):
    [case] = [case for case in find_cases("crrelu") if case.name == f"{kind}, 4x65x192"]
    assert case.floor_bytes == (2 if kind == "forward" else 5) * 4 * 4 * 65 * 192
    fused, separate = (case.contenders[name]()() for name in (case.method, "CRReLU, separate operations"))
    torch.testing.assert_close(fused, separate, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_peer_that_is_not_installed_is_an_import_error():
    with pytest.raises(ImportError):
        find_cases("crrelu")[0].contenders["timm SwishMe"]()
