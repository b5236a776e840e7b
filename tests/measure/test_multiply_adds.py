"""Multiply-adds against formulas and published counts, and what masks leave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from paperworks.measure.multiply_adds import RULE, Row, count_multiply_adds, layer_calls


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_a_linear_layer_counts_rows_times_weights(n: int, i: int, o: int, extra: int) -> None:
    x = torch.zeros(n, extra + 1, i)
    layer = nn.Linear(i, o)
    assert count_multiply_adds(layer, x).macs == n * (extra + 1) * i * o
    assert [c.macs for c in layer_calls(layer, x)] == [n * (extra + 1) * i * o]


@given(st.sampled_from([1, 2]), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1))
def test_convolutions_count_output_values_times_filter(groups: int, kernel: int, stride: int, padding: int) -> None:
    layer = nn.Conv2d(4, 6, kernel, stride, padding, groups=groups)
    x = torch.zeros(2, 4, 7, 5)
    wanted = layer(x).numel() * (4 // groups) * kernel**2
    assert count_multiply_adds(layer, x).macs == wanted
    assert layer_calls(layer, x)[0].macs == wanted


def test_a_transposed_convolution_counts_input_values_times_filter() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, 2)
    x = torch.zeros(2, 4, 5, 5)
    assert count_multiply_adds(layer, x).macs == x.numel() * 6 * 9 == layer_calls(layer, x)[0].macs


class Block(nn.Module):
    """Attention without a layer of its own for the products, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).transpose(1, 3).unbind(2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_outside_layers_stand_under_the_enclosing_module(device: str) -> None:
    model = nn.Sequential(Block(), Block()).to(device)
    found = count_multiply_adds(model, torch.zeros(3, 5, 8, device=device))
    one = [Row("", 0, 0), Row("qkv", 15 * 8 * 24, 15 * 8 * 24), Row("out", 15 * 64, 15 * 64)]
    assert {row.name: row.macs for row in found.rows} == {
        f"{i}{'.' * bool(r.name)}{r.name}": r.macs or 2 * 3 * 2 * 5 * 5 * 4 for i in "01" for r in one
    }
    assert found.macs == sum(row.macs for row in found.rows) == found.macs_kept
    assert found.rule == RULE
    assert model[0].training
    assert not model[0]._forward_hooks


def test_swin_tiny_has_the_published_4_5_giga_multiply_adds() -> None:
    transformers = pytest.importorskip("transformers", reason="the real network comes from transformers")
    with torch.device("meta"):
        model = transformers.SwinModel(transformers.SwinConfig()).eval()
        found = count_multiply_adds(model, torch.zeros(1, 3, 224, 224))
    assert round(found.macs / 1e9, 1) == 4.5
    assert sum(c.macs for c in layer_calls(model, torch.zeros(1, 3, 224, 224, device="meta"))) < found.macs


def test_masks_keep_their_share_and_parametrised_weights_count() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    class Keep(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 1

    parametrize.register_parametrization(model[0], "weight", Keep())
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[:, :1] = True
    found = count_multiply_adds(model, torch.zeros(5, 4), masks={"0.weight": mask})
    assert {row.name: (row.macs, row.macs_kept) for row in found.rows} == {"0": (120, 30), "2": (60, 60)}
    assert [c.name for c in layer_calls(model, torch.zeros(5, 4))] == ["0", "1", "2"]
    assert [c.name for c in layer_calls(model, torch.zeros(5, 4), kinds=(nn.Linear,))] == ["0", "2"]


def test_masks_for_what_is_no_weight_or_of_another_shape_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    for name, shape in (("0.bias", 6), ("1.weight", 6), ("nothing.weight", 6), ("0.weight", (4, 6))):
        with pytest.raises(ValueError, match="masks: "):
            count_multiply_adds(model, torch.zeros(1, 4), masks={name: torch.ones(shape, dtype=torch.bool)})


def test_a_layer_used_twice_has_one_row_of_both() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer)
    assert count_multiply_adds(model, torch.zeros(2, 3)).macs == 36
    assert len(layer_calls(model, torch.zeros(2, 3))) == 2
