"""SwiFT's network: published counts, the authors' computation in values and gradients, positions, bad input."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.papers.protocols.fmri_eager import EagerSwiFT
from paperworks.swin.swift import SwiFT

SMALL = {
    "img_size": (16, 16, 16, 8), "embed_dim": 12, "patch_size": (4, 4, 4, 1), "window_size": (2, 2, 2, 4),
    "depths": (2, 2), "num_heads": (1, 2),
}  # fmt: skip


def make(**options: object) -> SwiFT:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return SwiFT(**{**SMALL, **options})


def clips(*shape: int, seed: int = 0, **options: object) -> torch.Tensor:
    return torch.randn(shape or (2, 1, 16, 16, 16, 8), generator=torch.Generator().manual_seed(seed), **options)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.05)
    return model.double()


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in SwiFT().parameters()) == 4_314_636
        assert sum(p.numel() for p in SwiFT(num_outputs=1).parameters()) == 4_314_636 + 289
        official = EagerSwiFT()
    assert sum(p.numel() for p in official.parameters()) == 4_315_212, "with 576 of a norm that is not used"


def test_multiply_adds_at_the_paper_size() -> None:
    with torch.device("meta"):
        found = count_multiply_adds(SwiFT().eval(), torch.empty(1, 1, 96, 96, 96, 20)).macs
    assert found == pytest.approx(11.4e9, rel=0.01)


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, 8),
        ({}, 5),  # padded in time
        ({"last_layer_full_msa": False}, 8),
        ({"last_layer_full_msa": False, "window_size": (3, 4, 3, 3)}, 7),  # padded and clamped on some axes
        ({"depths": (2, 1, 2), "num_heads": (1, 2, 4), "window_size": (4, 2, 2, 2)}, 8),
    ],
)
def test_equal_to_the_step_by_step_computation(options: dict, frames: int) -> None:
    chosen = {**SMALL, **options}
    theirs = spread(EagerSwiFT(**chosen))
    ours = SwiFT(**chosen).double()
    ours.load_official_state_dict(theirs.state_dict())
    x = clips(2, 1, 16, 16, 16, frames, dtype=torch.float64)
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted, found = theirs(x), ours(y)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    (wanted * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-7, atol=1e-7)
    gradients = copy.deepcopy(theirs)
    for parameter, own in zip(gradients.parameters(), theirs.parameters(), strict=True):
        parameter.data = torch.zeros_like(own) if own.grad is None else own.grad
    expected = copy.deepcopy(ours)
    expected.load_official_state_dict(gradients.state_dict())
    for (name, own), wanted in zip(ours.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.data, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_official_names_with_prefix_and_head() -> None:
    theirs, ours = spread(EagerSwiFT(**SMALL)), make(num_outputs=1).double()
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    state |= {"output_head.head.weight": torch.ones(1, 24).double(), "output_head.head.bias": torch.ones(1).double()}
    ours.load_official_state_dict(state)
    x = clips(dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x).flatten(2).mean(2).sum(1, keepdim=True) + 1)
    torch.testing.assert_close(ours.forward_features(x), theirs(x))


def test_official_names_that_do_not_fit_are_refused_and_nothing_is_loaded() -> None:
    ours = make()
    before = copy.deepcopy(ours.state_dict())
    state = EagerSwiFT(**SMALL).state_dict()
    cases: dict[str, Callable[[dict], object]] = {
        r"missing: layers\.0\.blocks\.1\.attn\.qkv\.bias": lambda s: s.pop("layers.0.blocks.1.attn.qkv.bias"),
        "left over: layers.9.extra": lambda s: s.update({"layers.9.extra": torch.zeros(1)}),
        r"pos_embeds\.1\.pos_embed: got the shape": lambda s: s.update({"pos_embeds.1.pos_embed": torch.zeros(1, 24)}),
    }
    for message, change in cases.items():
        changed = dict(state)
        change(changed)
        with pytest.raises(ValueError, match=message):
            ours.load_official_state_dict(changed)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_positions_are_added_before_every_stage_and_cut_to_the_frames() -> None:
    model = make()
    with torch.no_grad():
        for stage in model.stages:
            stage.time_embed[..., 6:] = float("nan")
    assert torch.isfinite(model(clips(1, 1, 16, 16, 16, 6))).all()
    assert torch.isnan(model(clips(1, 1, 16, 16, 16, 7))).any()
    assert [tuple(stage.pos_embed.shape) for stage in model.stages] == [(1, 12, 4, 4, 4, 1), (1, 24, 2, 2, 2, 1)]
    assert [tuple(stage.time_embed.shape) for stage in model.stages] == [(1, 12, 1, 1, 1, 8), (1, 24, 1, 1, 1, 8)]


def test_without_positions_whole_windows_may_change_places() -> None:
    """Un-shifted windows and no positions: cyclic motion by a window, even after the merging, is not seen."""
    x = clips(dtype=torch.float64)
    for positions, moves in ((None, False), ("absolute", True)):
        model = make(depths=(1, 1), num_outputs=3, last_layer_full_msa=True, positions=positions).double()
        moved = model(x.roll((8, 8), (2, 4)))
        assert torch.allclose(moved, model(x), atol=1e-10) != moves


def test_relative_positions_have_swins_tables() -> None:
    model = make(positions="relative")
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if "relative_position_bias_table" in name]
    assert shapes == [(3 * 3 * 3 * 7, 1)] * 2 + [(3 * 3 * 3 * 7, 2)] * 2
    assert not any("pos_embed" in name for name, _ in model.named_parameters())


def test_the_last_stage_sees_the_whole_brain_and_four_frames() -> None:
    model = make(depths=(1, 2), num_heads=(1, 2)).double()
    assert [block.window for block in model.stages[1].blocks] == [(2, 2, 2, 4)] * 2
    assert [block.shift for block in model.stages[1].blocks] == [(0, 0, 0, 0)] * 2
    x = clips(1, 1, 16, 16, 16, 8, dtype=torch.float64).requires_grad_()
    model(x)[0, :, 0, 0, 0, 0].sum().backward()
    reached = x.grad.abs().sum((0, 1, 2, 3, 4)) > 0
    assert reached.tolist() == [True] * 4 + [False] * 4
    assert (x.grad[0, 0, ..., :4] != 0).all(), "every voxel"


def test_patches_of_several_frames() -> None:
    model = make(patch_size=(4, 4, 4, 2), window_size=(2, 2, 2, 2))
    assert model(clips()).shape == (2, 24, 2, 2, 2, 4)
    with pytest.raises(ValueError, match="7 frames on the axis T"):
        model(clips(1, 1, 16, 16, 16, 7))


def test_checkpointing_and_drop_path_keep_the_values_in_eval() -> None:
    x = clips().requires_grad_()
    model = make(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.5).eval()
    other = make(use_checkpoint=True).eval()
    other.load_state_dict(model.state_dict())
    [one], [two] = (torch.autograd.grad(m(x).square().sum(), x) for m in (model, other))
    torch.testing.assert_close(one, two)
    model.train()
    assert not torch.equal(model(x), model(x)), "dropout is on"


def test_round_trips_compile_autocast_and_types() -> None:
    model, x = make(num_outputs=2).eval(), clips()
    wanted = model(x)
    assert wanted.shape == (2, 2)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(x).float(), wanted, atol=0.1)
    assert make(dtype=torch.float64)(x.double()).dtype == torch.float64
    exported = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(exported, wanted)


def test_per_sample_gradients_by_func() -> None:
    model, x = make(num_outputs=1).eval(), clips()
    weights = dict(model.named_parameters())

    def loss(w: dict, one: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, w, (one.unsqueeze(0),)).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    model(x[1:]).sum().backward()
    torch.testing.assert_close(found["patch_embed.proj.weight"][1], model.patch_embed.proj.weight.grad)


@given(batch=st.integers(1, 3), frames=st.integers(1, 8), channels=st.integers(1, 2), flipped=st.booleans())
@settings(max_examples=12, deadline=None)
def test_shapes(batch: int, frames: int, channels: int, flipped: bool) -> None:
    model = make(in_chans=channels, num_outputs=3).eval()
    x = clips(batch, channels, 16, 16, 16, frames)
    x = x.transpose(2, 4).contiguous().transpose(2, 4) if flipped else x
    assert model(x).shape == (batch, 3)
    assert model.forward_features(x).shape == (batch, 24, 2, 2, 2, frames)
    torch.testing.assert_close(model(x), model(x.contiguous()))


def test_time_embedding_at_another_repetition_time() -> None:
    model = make()
    with torch.no_grad():
        for stage in model.stages:
            stage.time_embed.copy_(torch.arange(8.0).expand_as(stage.time_embed))
    model.resample_time_embedding(2.0, 1.0)
    wanted = torch.arange(8.0) / 2
    assert torch.allclose(model.stages[0].time_embed[0, 3, 0, 0, 0], wanted)
    model.resample_time_embedding(1.0, 4.0)
    assert torch.allclose(model.stages[1].time_embed[0, 3, 0, 0, 0], torch.tensor([0, 2, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": (16, 18, 16, 8)}, "18 on the axis W"),
        ({"img_size": (16, 16, 12, 8)}, "3 patches on the axis D, wanted a multiple of 2"),
        ({"img_size": (16, 16, 16, 7), "patch_size": (4, 4, 4, 2)}, "7 on the axis T"),
        ({"img_size": (16, 16, 16)}, "img_size: got .* wanted 4 numbers"),
        ({"num_heads": (1,)}, "num_heads: got"),
        ({"num_heads": (5, 2)}, "multiple of num_heads=5"),
        ({"positions": "rotary"}, "positions: got 'rotary'"),
        ({"num_outputs": -1}, "num_outputs: got -1"),
        ({"in_chans": 0}, "in_chans: got 0"),
        ({"drop_rate": 1.5}, "drop_rate: got 1.5"),
        ({"attn_drop_rate": 1.0}, "attn_drop_rate: got 1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate: got -0.1"),
    ],
)
def test_bad_sizes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 16, 16, 16), "wanted .B, 1, H, W, D, T."),
        ((1, 2, 16, 16, 16, 8), "wanted .B, 1, H, W, D, T."),
        ((1, 1, 15, 16, 16, 8), "15 on the axis H"),
        ((1, 1, 16, 16, 20, 8), "20 on the axis D"),
        ((1, 1, 16, 16, 16, 9), "9 frames on the axis T, wanted 1 to 8"),
        ((1, 1, 16, 16, 16, 0), "0 frames on the axis T"),
        ((0, 1, 16, 16, 16, 8), "an empty batch"),
    ],
)
def test_bad_clips(shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(shape))
    with pytest.raises(TypeError, match="wanted a floating type"):
        make()(torch.zeros(1, 1, 16, 16, 16, 8, dtype=torch.long))
    with pytest.raises(TypeError, match=r"x: got torch.float64, wanted torch.float32, that of the weights"):
        make()(torch.zeros(1, 1, 16, 16, 16, 8, dtype=torch.float64))
