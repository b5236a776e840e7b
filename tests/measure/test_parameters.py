"""Counting parameters."""

import pytest
import torch
from torch import nn

from paperworks.measure.parameters import count_parameters


def test_a_layer_by_hand() -> None:
    assert count_parameters(nn.Conv2d(3, 16, 5)) == 16 * 3 * 5 * 5 + 16
    assert count_parameters(nn.BatchNorm2d(7)) == 14  # running statistics are buffers
    assert count_parameters(nn.ReLU()) == 0


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 44
    layer = nn.Linear(2, 2)
    assert count_parameters(nn.Sequential(layer, layer)) == 6


def test_trainable_and_frozen_add_up() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    model[0].requires_grad_(False)
    assert count_parameters(model, trainable=True) == 25
    assert count_parameters(model, trainable=False) == 16
    assert count_parameters(model) == 41


def test_meta_models_are_counted_without_memory() -> None:
    assert count_parameters(nn.Linear(10**6, 10**6, bias=False, device="meta")) == 10**12


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="model: got dict"):
        count_parameters({"weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'1\.weight' has no shape yet"):
        count_parameters(nn.Sequential(nn.ReLU(), nn.LazyLinear(2)))
