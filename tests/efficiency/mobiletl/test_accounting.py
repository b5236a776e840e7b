"""The counting rules give the published savings, and agree with what is measured."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paperworks.efficiency.mobiletl import block_memory, mobiletl, stored_activations, training_flops
from paperworks.papers.protocols.mobilenets import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small


def test_the_published_savings_of_a_block():
    v2 = [block_memory(1, 1, 6, 196, 196, method=m) / 196 for m in ("ft", "mobiletl")]
    assert v2 == [26.75, 14.375]
    assert 100 * (1 - v2[1] / v2[0]) == pytest.approx(46.26, abs=0.005)
    for area, saved in ((49, 53.32), (196, 53.60)):
        ft, tl = (block_memory(9, 9, 6, area, area, se=True, act="hardswish", method=m) for m in ("ft", "mobiletl"))
        assert 100 * (1 - tl / ft) == pytest.approx(saved, abs=0.005)
    ft, tl = (block_memory(9, 9, 6, 49, 49, act="hardswish", method=m) for m in ("ft", "mobiletl"))
    assert 100 * (1 - tl / ft) == pytest.approx(62.2, abs=0.05)


@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([1, 3, 6]),
    st.booleans(),
    st.sampled_from(["relu6", "hardswish"]),
)
def test_mobiletl_never_keeps_more(c_in, c_out, expand, se, act):
    ft, tl = (block_memory(c_in, c_out, expand, 196, 49, se=se, act=act, method=m) for m in ("ft", "mobiletl"))
    assert c_in * 196 + c_out * 49 <= tl < ft


def test_a_block_without_expansion_has_no_first_convolution():
    assert block_memory(16, 24, 1, 100, 25, method="mobiletl") == 16 * 100 + 16 * 25 * (1 / 32 + 1) + 24 * 25


@pytest.mark.parametrize(
    ("index", "expand", "area_in", "area_out"), [(15, 6, 49, 49), (14, 6, 196, 49), (1, 1, 196, 196)]
)
def test_the_rule_is_what_a_block_of_mobilenet_v2_keeps(index, expand, area_in, area_out):
    """All but numbers a channel: the statistics of the norms."""
    block = mobilenet_v2().features[index]
    c_in = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
    c_out = [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1].out_channels
    side, n = int(area_in**0.5), 8
    maps = torch.randn(n, c_in, side, side, generator=torch.Generator().manual_seed(0))
    handle = mobiletl(nn.Sequential(block), 1)
    kept = stored_activations(handle.model.train(), maps).bytes
    want = 4 * n * block_memory(c_in, c_out, expand, area_in, area_out, method="mobiletl")
    assert kept == pytest.approx(want, abs=4 * 6 * (2 * expand * c_in + c_out))


def test_the_rule_is_what_fine_tuning_of_a_v3_block_keeps():
    block = mobilenet_v3_large().features[14]
    maps = torch.randn(8, 160, 7, 7, generator=torch.Generator().manual_seed(0))
    kept = stored_activations(nn.Sequential(block).train(), maps).bytes
    want = 4 * 8 * block_memory(160, 160, 6, 49, 49, se=True, act="hardswish")
    assert kept == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"c_in": 0}, "c_in"), ({"hw_out": -1}, "hw_out"), ({"act": "silu"}, "act"), ({"method": "lora"}, "method")],
)
def test_bad_numbers(arguments, name):
    with pytest.raises(ValueError, match=f"{name}: got"):
        block_memory(**{"c_in": 8, "c_out": 8, "expand": 6, "hw_in": 49, "hw_out": 49} | arguments)


# --- operations ---


def small() -> nn.Module:
    with torch.device("meta"):
        return mobilenet_v3_small(10)


def test_the_published_saving_of_operations():
    model = small()
    trained = [f"features.{i}" for i in range(7, 12)] + ["classifier"]
    for elementwise, saved in ((True, 36.3), (False, 35.0)):
        whole = training_flops(model, 224, None, elementwise=elementwise)
        part = training_flops(model, 224, trained, method="mobiletl", elementwise=elementwise)
        assert whole.forward == part.forward
        assert 100 * (1 - part.total / whole.total) == pytest.approx(saved, abs=0.05)


def test_a_convolution_costs_its_forward_three_times_and_the_first_one_twice():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    first, second = 2 * 3 * 4 * 36, 2 * 4 * 5 * 36
    found = training_flops(model, 6, None)
    assert (found.forward, found.backward) == (first + second, first + 2 * second)
    assert found.total == found.forward + found.backward
    assert training_flops(model, 6, ["1"]).backward == second, "nothing below trains"
    assert training_flops(model, 6, ["0"]).backward == first + second, "through the second to the first"
    assert training_flops(model, 6, []).backward == 0


def test_elementwise_operations_a_value():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Hardswish(), nn.BatchNorm2d(4), nn.ReLU6())
    found, plain = training_flops(model, 6, None), training_flops(model, 6, None, elementwise=False)
    assert found.forward - plain.forward == 4 * 36 * (2 + 4 + 2 + 1)
    assert found.backward - plain.backward == 4 * 36 * (6 + 4 + 6 + 1)
    still = training_flops(model, 6, ["0"])
    assert still.backward - plain.backward == 4 * 36 * (1 + 4 + 1 + 1), "norms in the way of the gradient"


def test_a_converted_network_counts_as_one_that_is_to_be():
    model = mobilenet_v3_small(10)
    plain = copy.deepcopy(model)
    handle = mobiletl(model, 5)
    for elementwise in (True, False):
        before = training_flops(plain, 64, handle.trained_names, method="mobiletl", elementwise=elementwise)
        after = training_flops(model, 64, handle.trained_names, elementwise=elementwise)
        assert before == after


def test_a_name_that_is_not_there():
    with pytest.raises(ValueError, match=r"features\.99"):
        training_flops(small(), 32, ["features.99"])
    with pytest.raises(ValueError, match="Conv2d"):
        training_flops(nn.Linear(2, 2), 32, None)
    with pytest.raises(ValueError, match="method"):
        training_flops(small(), 32, None, method="lora")
