"""Putting masks on, taking them off, storing them; the names a checkpoint has."""

import copy

import pytest
import torch
from efficiency.dimap.doubles import TimmSwin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from paperworks.efficiency.dimap import Masks, dimap_masks, dimap_prune

QKV = "layers.0.blocks.0.attn.qkv.weight"


def model() -> TimmSwin:
    torch.manual_seed(0)
    return TimmSwin().eval()


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_attached_and_permanent_masks_give_the_same_function():
    attached, permanent = model(), model()
    dimap_prune(attached, 0.6)
    dimap_prune(permanent, 0.6, permanent=True)
    assert torch.equal(attached(IMAGES), permanent(IMAGES))
    assert not torch.equal(attached(IMAGES), model()(IMAGES))


def test_an_attached_mask_is_a_buffer_of_a_parametrisation():
    net = model()
    masks = dimap_prune(net, 0.6)
    layer = net.layers[0].blocks[0].attn.qkv
    assert parametrize.is_parametrized(layer, "weight")
    assert torch.equal(dict(layer.named_buffers())["parametrizations.weight.0.weight_mask"], masks[QKV])
    assert torch.equal(layer.weight == 0, ~masks[QKV])


def test_permanent_keeps_the_names_and_their_order():
    net = model()
    dimap_prune(net, 0.6, permanent=True)
    assert list(net.state_dict()) == list(model().state_dict())


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_removal_brings_the_dense_names_back_in_order(keep_zeros):
    net, dense = model(), model()
    masks = dimap_prune(net, 0.6)
    pruned = net(IMAGES)
    masks.remove(net, keep_zeros=keep_zeros)
    assert list(net.state_dict()) == list(dense.state_dict())
    assert torch.equal(net(IMAGES), pruned if keep_zeros else dense(IMAGES))
    assert type(net.layers[0].blocks[0].attn.qkv) is nn.Linear


def test_removed_weights_get_no_gradient():
    net = model()
    masks = dimap_prune(net, 0.5)
    net(IMAGES).sum().backward()
    gradient = net.layers[0].blocks[0].attn.qkv.parametrizations.weight.original.grad
    assert not gradient[~masks[QKV]].any()
    assert gradient[masks[QKV]].any()


def test_state_dict_and_deepcopy_of_a_pruned_model():
    net = model()
    dimap_prune(net, 0.5)
    twin = model()
    dimap_prune(twin, 0.1)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(IMAGES), net(IMAGES))
    assert torch.equal(copy.deepcopy(net)(IMAGES), net(IMAGES))


def test_taking_the_masks_off_a_copy_leaves_the_model_masked():
    net = model()
    masks = dimap_prune(net, 0.5)
    pruned = net(IMAGES)
    twin = copy.deepcopy(net)
    masks.remove(twin)
    assert torch.equal(net(IMAGES), pruned)
    assert torch.equal(twin(IMAGES), pruned)
    assert list(twin.state_dict()) == list(model().state_dict())


def test_an_optimizer_keeps_the_weights_it_has():
    net = model()
    weight = net.layers[0].blocks[0].attn.qkv.weight
    masks = dimap_prune(net, 0.5)
    masks.remove(net)
    assert net.layers[0].blocks[0].attn.qkv.weight is weight


def test_removed_weights_are_plain_zeros_whatever_was_there():
    net = model()
    weight = net.layers[0].blocks[0].attn.qkv.weight
    weight.data[0, 0] = 1e-30 * -1
    masks = dimap_prune(net, 0.5)
    masked = net.layers[0].blocks[0].attn.qkv.weight
    assert not masks[QKV][0, 0]
    assert not torch.signbit(masked[~masks[QKV]]).any()


def test_masks_again_replace_the_masks_that_are_there():
    net = model()
    dimap_prune(net, 0.5)
    wide = dimap_masks(model(), 0.2)
    wide.attach(net)
    assert len(net.layers[0].blocks[0].attn.qkv.parametrizations.weight) == 1
    wide.remove(net)
    other = model()
    wide.apply(other)
    assert torch.equal(net(IMAGES), other(IMAGES))


def test_apply_under_an_attached_mask_zeroes_the_stored_weights():
    net = model()
    masks = dimap_prune(net, 0.5)
    masks.apply(net)
    masks.remove(net, keep_zeros=False)
    assert torch.equal(net.layers[0].blocks[0].attn.qkv.weight == 0, ~masks[QKV])


@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_eight_weights_a_byte_and_back(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    state = Masks({"a.weight": mask}).state_dict()
    assert state["a.weight"].dtype == torch.uint8
    assert len(state["a.weight"]) == -(-mask.numel() // 8)
    other = Masks({"a.weight": torch.zeros_like(mask)})
    other.load_state_dict(state)
    assert torch.equal(other["a.weight"], mask)


def test_a_stored_file_of_masks_is_loaded_for_a_model(tmp_path):
    masks = dimap_masks(model(), 0.7)
    torch.save(masks.state_dict(), tmp_path / "masks.pt")
    fresh = Masks()
    fresh.load_state_dict(torch.load(tmp_path / "masks.pt", weights_only=True), model())
    assert all(torch.equal(fresh[name], mask) for name, mask in masks.items())
    assert fresh.counts() == masks.counts()


def test_masks_that_were_stored_for_another_model():
    masks = dimap_masks(model(), 0.5)
    state = masks.state_dict()
    with pytest.raises(ValueError, match="missing"):
        masks.load_state_dict({QKV: state[QKV]})
    with pytest.raises(ValueError, match=r"uint8 of shape"):
        masks.load_state_dict({**state, QKV: state[QKV][:-1]})
    with pytest.raises(ValueError, match="unknown"):
        Masks().load_state_dict(state)


def test_the_mapping():
    masks = dimap_masks(model(), 0.5)
    assert len(masks) == len(list(masks)) == 16
    kept, total = masks.counts()[QKV]
    assert (kept, total) == (int(masks[QKV].sum()), 192)
    assert "of" in repr(masks)
    assert masks.to("meta")[QKV].is_meta


def test_masks_that_do_not_fit():
    ones = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(TypeError, match="bool"):
        Masks({"a.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="shape"):
        Masks({QKV: ones}).apply(model())
    with pytest.raises(ValueError, match="no layer"):
        Masks({"nowhere.weight": ones}).attach(model())
    with pytest.raises(ValueError, match="weight"):
        Masks({QKV.replace("weight", "bias"): ones}).apply(model())
    with pytest.raises(ValueError, match="carries no mask"):
        dimap_masks(model(), 0.5).remove(model())


@pytest.mark.parametrize("permanent", [True, False])
def test_a_weight_of_another_parametrisation_is_not_overwritten(permanent):
    net = model()
    parametrizations.weight_norm(net.layers[0].blocks[0].attn.qkv)
    with pytest.raises(ValueError, match="another parametrisation"):
        dimap_prune(net, 0.5, permanent=permanent)
