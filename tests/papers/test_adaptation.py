"""The adaptation protocols and TauGate's card: the rotated task, arms, exact claims, MNIST's files, the figure."""

import gzip
import importlib.util
import math
import struct

import pytest
import torch
from in_process import Here
from torch import nn

import paperworks.efficiency.dopamine as method
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import Arm, BestOf, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import adaptation_arms as arms
from paperworks.papers.protocols import adaptation_calls as calls
from paperworks.papers.protocols.adaptation import adaptation, feature_gap
from paperworks.papers.protocols.adaptation_training import foundation, load_task, rotated

paper = find("dopamine")
EXACT = [claim for claim in paper.claims if claim.kind == "exact"]
ARMS = "paperworks.papers.protocols.adaptation_arms:"


def trial(protocol=adaptation, **settings) -> Trial:
    defaults = {s.name: at_tier(s.default, "smoke") for s in protocol.settings}
    return Trial(0, "smoke", settings={**defaults, "data": "digits?size=8", "hidden": 16, **settings})


# --- the task ---


def test_a_quarter_turn_is_counter_clockwise():
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotated(image, 90), torch.rot90(image, 1, (2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotated(image, 0), image)


def test_half_a_right_angle_turns_about_the_centre_and_fills_with_black():
    turned = rotated(torch.ones(1, 1, 9, 9), 45)
    assert turned[0, 0, 4, 4] == pytest.approx(1)
    assert turned[0, 0, 0, 0] == 0
    torch.testing.assert_close(turned, turned.transpose(2, 3))
    bright = torch.zeros(1, 1, 33, 33)
    bright[..., 15:18, 28:31] = 1  # to the right: after the turn to the upper right
    weights = rotated(bright, 45)[0, 0]
    down, right = (float((weights.sum(d) * torch.arange(33)).sum() / weights.sum()) - 16 for d in (1, 0))
    assert right == pytest.approx(13 / math.sqrt(2), abs=0.2)
    assert down == pytest.approx(-13 / math.sqrt(2), abs=0.2)


def test_the_task_is_one_split_twice():
    task = load_task(trial())
    assert len(task.train) == 900
    assert len(task.test) == 897
    torch.testing.assert_close(task.rotated_test.images, rotated(task.test.images, 45))
    assert torch.equal(task.rotated_test.labels, task.test.labels)


def test_arms_of_a_seed_share_the_foundation_and_foundations_differ():
    t = trial()
    task = load_task(t)
    first, second = (foundation(t, task, "mixture").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    upright = foundation(t, task, "upright").state_dict()
    assert not torch.equal(first["1.weight"], upright["1.weight"])


# --- arms ---


@pytest.mark.parametrize(
    ("name", "parameters"), [("taugate", 64), ("lora", 1104), ("ia3", 32), ("bitfit", 42), ("frozen", 0)]
)
def test_arms_train_what_they_say(name, parameters):
    if name in ("lora", "ia3"):
        pytest.importorskip("peft", reason="LoRA and IA3 are peft's")
    found = adaptation.function(trial(), Arm(name, ARMS + name))
    assert set(found) == set(adaptation.metrics)
    assert found["parameters"] == parameters
    assert (found["file_bytes"] > 4 * parameters) == (parameters > 0)
    assert all(math.isfinite(value) for value in found.values())


def test_the_frozen_arm_is_the_foundation():
    t = trial()
    task = load_task(t)
    network = foundation(t, task, "mixture")
    with torch.no_grad():
        right = network(task.rotated_test.images).argmax(1) == task.rotated_test.labels
    found = adaptation.function(t, Arm("base", ARMS + "frozen"))
    assert found["accuracy"] == found["hard_accuracy"] == pytest.approx(right.float().mean().item())
    assert found["open_share"] == 1


def test_equal_units_are_no_minority():
    task = load_task(trial())
    network = arms.perceptron(64, 16, 10)
    adapted = arms.equalized(network)
    adapted.prepare(task.train.images)
    report = adapted.gates.report([task.train.images])
    assert all(site.strong_share > 0.5 for site in report.sites.values())


def test_an_arm_is_no_further_ahead_of_itself_on_another_foundation():
    reference = f"{ARMS}taugate(lr=0.02)"
    found = feature_gap.function(trial(feature_gap, reference=reference), Arm("same", ARMS + "taugate", {"lr": 0.02}))
    assert found == {"growth": 0, "mixture_gap": 0, "upright_gap": 0}


# --- the card ---


def test_facts():
    assert paper.arxiv == "2602.11726"
    assert len(paper.authors.split(", ")) == paper.n_authors == 1


def test_the_usage_on_the_card_runs(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    scope = {"model": model, "torch": torch, "folder": tmp_path, "loader": [torch.randn(5, 3)]}
    code = paper.usage.replace("adapted.set_mode(None)", "adapted.set_mode(None); adapted.set_mode('default')")
    exec(code, scope)
    assert isinstance(scope["small"], nn.Sequential)
    assert (tmp_path / "taugate_model.safetensors").exists()


def test_like_sizes_are_compared_with_as_many_rates():
    for id in ("better-than-ia3", "better-than-bias-tuning", "lora-is-more-accurate-and-larger"):
        criterion = paper.claim(id).criteria[0]
        sides = (criterion.method, criterion.baseline)
        assert all(isinstance(side, BestOf) and len(side.arms) == 3 for side in sides)


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim):
    for need in claim.needs:
        pytest.importorskip(need.name, reason="counts on what that library makes")
    found = resolve(claim.target)(Trial())
    assert {name: value for name, value in found.items() if not claim.bounds[name].met(value)} == {}
    assert set(found) == set(claim.bounds)


BROKEN = {
    "a gate on phi(z)": ("hard-gates-below-zero-are-the-identity", lambda z, phi, tau, gain, s, hard: phi * (phi > 1)),
    "a threshold that opens": ("a-silent-unit-stays-silent", lambda z, phi, tau, gain, s: phi - tau),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken, monkeypatch):
    id, instead = broken
    monkeypatch.setattr(method, "tau_gate", instead)
    claim = paper.claim(id)
    found = resolve(claim.target)(Trial())
    assert [name for name, bound in claim.bounds.items() if not bound.met(found[name])]


# --- MNIST's files ---


def write_mnist(folder, n=40):
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        pixels = torch.randint(0, 256, (n, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(n, dtype=torch.uint8) % 10
        images = struct.pack(">IIII", 2051, n, 28, 28) + pixels.numpy().tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.numpy().tobytes())


def test_mnist_by_path(tmp_path):
    pytest.importorskip("peft", reason="LoRA is peft's")
    write_mnist(tmp_path)
    claim = paper.claim("on-mnist")
    [need] = [n for n in claim.needs if n.kind == "setting"]
    assert need.missing({"data": "digits"})
    assert need.missing({"data": f"idx:{tmp_path}"}) is None
    with open_store(tmp_path / "lab.sqlite") as store:
        [without] = run([paper], store, Here(), tier="smoke", claims=["on-mnist"])
        assert without.status == "not run"
        given = {"data": f"idx:{tmp_path}", "hidden": "32"}
        [verdict] = run([paper], store, Here(), tier="smoke", claims=["on-mnist"], settings=given)
    assert verdict.status == "inconclusive", verdict.reason
    values = verdict.comparisons[2].method_values
    assert set(values.values()) == {128.0}


# --- a whole run ---


def test_controls_run_and_too_few_seeds_decide_nothing(tmp_path):
    claims = ["hard-gates-keep-it", "few-units-are-strong", "few-gates-are-open"]
    settings = {"data": "digits?size=8", "hidden": "16", "foundation_epochs": "1"}
    with open_store(tmp_path / "lab.sqlite") as store:
        controls = run([paper], store, Here(), tier="smoke", settings=settings, claims=claims, control=True)
    assert {v.status for v in controls} == {"inconclusive"}, [v.reason for v in controls]


class Numbers:
    """Results that are at hand: two seeds, a number of their own for every arm."""

    def metric(self, claim, arm, metric):
        assert {arm} <= {side.name for c in paper.claim(claim).criteria for side in (c.method, c.baseline)}
        assert metric in adaptation.metrics
        return {0: float(len(arm)), 1: float(len(arm)) + 1}

    def curves(self, claim, arm, curve):
        return [(0, [-1.0, 0.5]), (1, [0.2, 2.0])]


def test_the_figure_shows_every_adapter():
    from matplotlib.figure import Figure

    figure = Figure()
    resolve(paper.figures[0].target)(figure, Numbers())
    left, right = figure.axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == [
        f"{name}, {round(len(name) + 0.5)}" for name in ("frozen base", "bias tuning", "IA3", "TauGate", "LoRA")
    ]
    assert right.lines[0].get_xydata().tolist() == [[v, v] for v in (-1, 0.5, 0.2, 2.0)]


# --- what is timed ---


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(calls, "SHAPE", (4, 5, 6))
    monkeypatch.setattr(calls, "WIDTH", 8)


def test_timed_calls_compute_the_same(small):
    mixed, one_by_one = (f(Trial())() for f in (calls.mixed_modes, calls.mixed_one_by_one))
    torch.testing.assert_close(mixed, one_by_one)
    torch.testing.assert_close(mixed[:1], calls.one_mode(Trial())()[:1])
    hard, compact = calls.taugate(Trial(), hard=True)(), calls.compact(Trial(), closed=0.0)()
    torch.testing.assert_close(hard[:2], compact[:2], rtol=1e-4, atol=1e-5)
    assert calls.base(Trial())().shape == calls.separate_operations(Trial())().shape == (4, 5, 6)
    pytest.importorskip("peft", reason="IA3 is peft's")
    torch.testing.assert_close(calls.ia3(Trial())(), calls.base(Trial())(), rtol=1e-4, atol=1e-5)


def test_the_benchmark_prepares_and_missing_peers_are_import_errors(small, monkeypatch):
    cases = find_cases("dopamine")
    assert len(cases) == 6
    assert all(case.method in case.contenders for case in cases)
    step = cases[1].contenders["TauGate"]()
    assert step().item() >= step().item() * 0.5
    if importlib.util.find_spec("peft") is None:
        with pytest.raises(ImportError, match="peft"):
            cases[0].contenders["peft LoRA, r = 8"]()
