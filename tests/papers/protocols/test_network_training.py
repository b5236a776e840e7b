"""The protocol that trains a network an arm: repeatable, paired, and open to the user's networks and data."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paperworks.lab.nouns import Arm, Bound
from paperworks.lab.registry import find
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols import af_kan_arms, af_kan_checks
from paperworks.papers.protocols.af_kan_calls import training_step
from paperworks.papers.protocols.network_training import network_training
from paperworks.papers.protocols.network_trials import train_network

ARMS = "paperworks.papers.protocols.af_kan_arms:"
MLP, AF_KAN = Arm("MLP", ARMS + "layer_norm_mlp"), Arm("AF-KAN", ARMS + "af_kan", {"width": 8})


def train(arm: Arm, seed: int = 0, **given: object) -> dict[str, float]:
    settings = complete(network_training, "smoke", {}, given)
    return train_network(Trial(seed, "smoke", settings=settings), arm)


def without_time(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name != "seconds_a_step"}


def test_the_same_seed_is_the_same_run() -> None:
    first = train(AF_KAN)
    torch.randn(3)
    assert without_time(train(AF_KAN)) == without_time(first)
    assert without_time(train(AF_KAN, seed=1)) != without_time(first)
    assert first.keys() == network_training.metrics.keys()


def test_it_learns_and_counts() -> None:
    found = train(MLP, epochs=8, train_size=0)
    assert found["accuracy"] > 0.85
    assert found["parameters"] == 2560


@pytest.mark.parametrize("given", [{"gamma": 0.5}, {"lr": 1e-2}, {"weight_decay": 0.5}, {"batch_size": 16}])
def test_every_setting_does_something(given: dict[str, object]) -> None:
    assert train(MLP, epochs=2, **given)["loss"] != train(MLP, epochs=2)["loss"]


def test_idx_files_as_of_mnist(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part, n in (("train", 14), ("t10k", 6)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 0x803, n, 28, 28)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
    found = train(Arm("AF-KAN", ARMS + "af_kan", {"width": 64}), data=f"idx:{tmp_path}", train_size=0)
    assert found["parameters"] == 52_552
    claim = find("af-kan").claim("competitive-on-mnist")
    assert claim.needs[0].missing({"data": f"idx:{tmp_path}"}) is None
    assert claim.needs[0].missing({}) is not None


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(TypeError, match=r"arm range: built tuple, wanted an nn\.Module"):
        train(Arm("range", "builtins:divmod"))
    with pytest.raises(ValueError, match=r"setting 'gamma': got 1\.5"):
        train(MLP, gamma=1.5)
    with pytest.raises(ValueError, match="setting 'epochs': got 0"):
        train(MLP, epochs=0)


@pytest.mark.parametrize("name", ["efficient_kan", "fast_kan", "faster_kan", "bsrbf_kan", "relu_kan", "af_kan"])
def test_the_networks_of_the_comparison_train(name: str) -> None:
    network = getattr(af_kan_arms, name)(6, 3, width=4)
    y = network(torch.randn(5, 6))
    assert y.shape == (5, 3)
    y.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_efficient_kan_sums_to_its_splines_inside_the_grid() -> None:
    layer = af_kan_arms.EfficientKANLayer(1, 1)
    with torch.no_grad():
        layer.base_weight.zero_()
        layer.spline_scaler.fill_(2.0)
        layer.spline_weight.fill_(1.5)
    torch.testing.assert_close(layer(torch.linspace(-1, 1, 9)[:, None]), torch.full((9, 1), 3.0))


def test_the_straightforward_network_is_the_same_function() -> None:
    fused, plain = af_kan_arms.af_kan(12, 3), af_kan_arms.straightforward_af_kan(12, 3)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(4, 12)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_timed_step_is_forward_and_backward() -> None:
    model = training_step(Trial(), name="layer_norm_mlp", batch=4)()
    assert isinstance(model, nn.Module)
    assert all(p.grad is not None for p in model.parameters())


def test_exact_claims_hold_and_lose_when_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = find("af-kan")
    for name in ("l2_normalisation_cancels", "batch_mates_change_the_output", "epsilon_outweighs_the_variance"):
        found = getattr(af_kan_checks, name)(Trial())
        bounds: dict[str, Bound] = dict(paper.claim(name.replace("_", "-")).bounds)
        assert all(bound.met(found[label]) for label, bound in bounds.items()), name
    monkeypatch.setattr(af_kan_arms, "af_kan", af_kan_arms.relu_kan)
    broken = af_kan_checks.parameters_of_an_mlp(Trial())
    assert broken["AF-KAN"] == 316_842
    assert count_parameters(af_kan_arms.layer_norm_mlp(784, 10, width=64)) == 52_512
