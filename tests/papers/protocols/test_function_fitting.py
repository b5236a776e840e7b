"""The function fitting protocol: the functions, paired data, equal sizes, stages for what chooses; and on images."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paperworks.kan.bases import KANLinear
from paperworks.kan.s_kan import SKAN
from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.function_fitting import FUNCTIONS, function_fitting
from paperworks.papers.protocols.function_trials import chosen_families, fit_functions, sample, target
from paperworks.papers.protocols.kan_image_trials import train_network
from paperworks.papers.protocols.kan_images import network_classification
from paperworks.papers.protocols.kan_networks import conv_kan, conv_twin, kan, mlp, s_conv_kan, s_kan

NETWORKS = "paperworks.papers.protocols.kan_networks"
RBF, S_KAN = Arm("rbf", f"{NETWORKS}:kan", {"basis": "rbf"}), Arm("S-KAN", f"{NETWORKS}:s_kan")
MLP = Arm("MLP", f"{NETWORKS}:mlp", {"lr": 1e-2})


def trial(seed: int = 0, **given: object) -> Trial:
    return Trial(seed, "smoke", settings=complete(function_fitting, "smoke", {}, {"steps": 4, "points": 60, **given}))


def image_trial(seed: int = 0, **given: object) -> Trial:
    return Trial(seed, "smoke", settings=complete(network_classification, "smoke", {}, given))


def test_values_of_the_functions() -> None:
    at = torch.tensor([[0.5, -0.6]], dtype=torch.float64)
    values = {name: target(name, at).item() for name in ("exp_sine", "product", "discontinuous", "kink")}
    assert values["exp_sine"] == pytest.approx(math.exp(1 + 0.36))
    assert values["product"] == pytest.approx(-0.3)
    assert values["discontinuous"] == 1
    assert values["kink"] == pytest.approx(math.exp(-40 * 0.09) + 0.6)
    assert target("bessel", torch.tensor([[2.404825557695773 / 20]], dtype=torch.float64)).abs().item() < 1e-12
    assert target("oscillation", torch.tensor([[0.25]])).item() == pytest.approx(-math.exp(-0.25))
    four = torch.full((1, 4), 0.5, dtype=torch.float64)
    assert target("four_variables", four).item() == pytest.approx(math.exp(1))
    with pytest.raises(ValueError, match="bessel"):
        target("sinc", at)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_points_are_paired_and_targets_standardised(name: str) -> None:
    x, y, x_test, _ = sample(trial(3), name)
    assert x.shape == (60, FUNCTIONS[name])
    assert y.mean().abs() < 1e-5
    assert y.std().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(sample(trial(3), name)[2], x_test)
    assert not torch.equal(sample(trial(4), name)[0], x)


@pytest.mark.parametrize("arm", [RBF, S_KAN, MLP])
def test_every_metric_of_every_kind_of_arm(arm: Arm) -> None:
    found = fit_functions(trial(), arm)
    assert set(found) == set(function_fitting.metrics)
    assert all(math.isfinite(value) for value in found.values())
    assert found == fit_functions(trial(), arm)
    mean = np.mean([found[f"log_rmse_{name}"] for name in FUNCTIONS])
    assert found["log_rmse"] == pytest.approx(mean)


def test_fitting_lowers_the_error() -> None:
    short, long = (fit_functions(trial(steps=steps), RBF)["log_rmse"] for steps in (2, 60))
    assert long < short - 0.2


def test_what_was_chosen_is_counted() -> None:
    waves = fit_functions(trial(), Arm("fourier", f"{NETWORKS}:kan", {"basis": "fourier"}))
    assert (waves["waves_on_waves"], waves["splines_on_smooth"]) == (1, 0)
    assert waves["decided"] == 1
    model = SKAN([3, 1])
    assert chosen_families(model) == []
    model.select(None)
    assert chosen_families(model.compact()) == ["bspline"] * 3
    assert chosen_families(nn.Sequential(KANLinear(2, 1, "rbf"))) == ["rbf"] * 2
    assert chosen_families(nn.Linear(2, 2)) == []


def test_sizes_are_equal() -> None:
    for variables in (1, 2, 4):
        wanted = count_parameters(kan(variables, 5, 8, basis="rbf"))
        smaller = SKAN([variables, 5, 1])
        smaller.select()
        assert count_parameters(smaller.compact()) == wanted
        assert wanted <= count_parameters(mlp(variables, 5, 8)) < 1.25 * wanted
    assert isinstance(s_kan(2, 5, 8), SKAN)
    single = count_parameters(conv_kan(10, 1, 8, basis="rbf"))
    assert single <= count_parameters(conv_twin(10, 1, 8)) < 1.25 * single
    net = s_conv_kan(10, 1, 8)
    net.select()  # type: ignore[operator]
    assert count_parameters(net.compact()) == single  # type: ignore[operator]


@pytest.mark.parametrize(
    "builder",
    [
        "s_conv_kan(widths='3-4')",
        "conv_kan(basis='rbf')",
        "conv_twin",
        "image_mlp",
        "image_s_kan",
        "image_af_kan",
        "image_relu_kan",
    ],
)
def test_networks_on_images(builder: str) -> None:
    arm = Arm.parse(f"{NETWORKS}:{builder}")
    found = train_network(image_trial(), arm)
    assert set(found) == set(network_classification.metrics)
    assert 0 <= found["accuracy"] <= 1
    assert found["multiply_adds"] > found["parameters"] / 3
    assert found == train_network(image_trial(), arm)


def test_multiply_adds_are_those_of_the_weights() -> None:
    found = train_network(image_trial(), Arm.parse(f"{NETWORKS}:image_kan(basis='rbf', width=4)"))
    assert found["multiply_adds"] == found["parameters"] == 64 * 4 * 9 + 4 * 10 * 9


def test_images_of_the_user(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes())
        labels = np.arange(n, dtype=np.uint8) % 10
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
    arm = Arm.parse(f"{NETWORKS}:s_conv_kan(widths='3-4')")
    found = train_network(image_trial(data=f"idx:{tmp_path}", batch_size=20, augment=True), arm)
    assert 0 <= found["accuracy"] <= 1
