"""The image classification protocol: the same seed is the same run, arms are paired, and the user's own things fit."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.continual import class_incremental
from paperworks.papers.protocols.images import classification
from paperworks.papers.protocols.latency import latency
from paperworks.papers.protocols.training import augmented, parameter_groups, train_classifier

RELU, SILU = Arm("ReLU", "torch.nn:ReLU"), Arm("SiLU", "torch.nn:SiLU")
PRELU = Arm("PReLU", "torch.nn:PReLU")


def train(arm: Arm, seed: int = 0, **given: object) -> dict[str, float]:
    settings = complete(classification, "smoke", {}, {"epochs": 2, **given})
    return train_classifier(Trial(seed, "smoke", settings=settings), arm)


def tiny_model(num_classes: int, in_channels: int) -> nn.Module:
    """What a user's factory may look like."""
    pooled = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(pooled, nn.Linear(4, num_classes))


def test_the_same_seed_is_the_same_run_whatever_ran_before() -> None:
    first = train(RELU)
    torch.randn(7)
    np.random.rand(3)
    train(SILU, seed=5)
    assert train(RELU) == first
    assert train(RELU, seed=1) != first


def test_nothing_is_left_of_the_global_generators() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    train(RELU)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_an_arm_with_a_parameter_learns_it_and_reports_it() -> None:
    found = train(PRELU)
    assert found["learned_parameter"] != 0.25
    assert train(RELU)["learned_parameter"] == 0.0


def test_it_learns() -> None:
    assert train(RELU, epochs=8, train_size=0)["accuracy"] > 0.7


@pytest.mark.parametrize("given", [{"optimizer": "sgd", "lr": 0.05}, {"schedule": "cosine"}, {"augment": True}])
def test_every_option_does_something(given: dict[str, object]) -> None:
    assert train(RELU, **given) != train(RELU)


def test_networks_by_name_and_by_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_users_models")
    module.tiny_model = tiny_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for model in ("vit", "convnet", "a_users_models:tiny_model"):
        assert 0 <= train(SILU, model=model)["accuracy"] <= 1


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 128)):
        (tmp_path / label).mkdir()
        for i in range(20):
            pixels = rng.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    found = train(RELU, data=f"imagefolder:{tmp_path}", epochs=30, lr=0.01)
    assert found["accuracy"] > 0.9


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="convnet, vit"):
        train(RELU, model="no_such_module_at_all:factory")
    with pytest.raises(ValueError, match="setting 'optimizer': got 'adam', wanted adamw or sgd"):
        train(RELU, optimizer="adam")
    with pytest.raises(ValueError, match="setting 'epochs': got 0"):
        train(RELU, epochs=0)


def test_only_matrices_are_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Flatten(), nn.Linear(2, 2))
    decayed, spared = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert [p.ndim for p in decayed["params"]] == [4, 2]  # type: ignore[attr-defined]
    assert all(p.ndim == 1 for p in spared["params"])  # type: ignore[attr-defined]


def test_augmentation_shifts_and_mirrors_whole_pictures() -> None:
    images = torch.zeros(64, 2, 8, 8)
    images[:, :, 3, 2] = 1.0
    made = augmented(images, torch.Generator().manual_seed(0))
    assert made.shape == images.shape
    assert torch.equal(made.sum((2, 3)), images.sum((2, 3)))
    where = {tuple(p.nonzero()[0].tolist()) for p in made[:, 0]}
    assert {row for row, _ in where} == {2, 3, 4}
    assert {column for _, column in where} == {1, 2, 3, 4, 5, 6}


def test_class_incremental_learning_forgets() -> None:
    settings = complete(class_incremental, "smoke", {}, {})
    assert class_incremental.function is not None
    options = {"activation": "torch.nn:ReLU", "lr": 0.05}
    arm = Arm("x", "paperworks.papers.protocols.continual:learner", options)
    found = class_incremental.function(Trial(0, "smoke", settings=settings), arm)
    assert found == class_incremental.function(Trial(0, "smoke", settings=settings), arm)
    assert 0 < found["accuracy"] < 0.9
    assert found["forgetting"] > 0.05


def test_latency_is_relative_to_the_reference() -> None:
    given = {"shape": "64x256x64", "reference": "torch.nn:Softmax(dim=-1)"}
    settings = complete(latency, "smoke", {}, given)
    assert latency.function is not None
    for backward in (False, True):
        found = latency.function(Trial(0, settings={**settings, "backward": backward}), RELU)
        assert found["seconds"] > 0
        assert found["ratio"] > 0
    assert latency.exclusive
    with pytest.raises(ValueError, match="wanted sizes such as"):
        complete(latency, "smoke", {}, {"shape": "3xbig"})
