"""Swin UNETR: MONAI's values, the sizes it takes, its options, and what is refused."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from paperworks.swin.swin_unetr import SwinEncoder, SwinUNETR

SMALL: dict[str, Any] = {"feature_size": 12, "num_heads": (1, 2, 3, 4)}
FLAT = {**SMALL, "spatial_dims": 2}


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def both(sizes: dict[str, Any], **ours: Any) -> tuple[nn.Module, SwinUNETR]:
    monai = pytest.importorskip("monai.networks.nets", reason="the reference")
    torch.manual_seed(0)
    theirs = monai.SwinUNETR(2, 3, **sizes).double()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name or "table" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    found = SwinUNETR(2, 3, **sizes, **ours).double()
    found.load_monai_state_dict(theirs.state_dict())
    return theirs, found


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ({**SMALL, "window_size": (4, 7, 5)}, (64, 32, 32)),
        ({**FLAT, "depths": (1, 2, 3, 1), "mlp_ratio": 2.0, "qkv_bias": False}, (64, 96)),
        ({**FLAT, "use_v2": True, "downsample": "mergingv2", "normalize": False}, (128, 64)),
    ],
    ids=["3-D", "2-D", "V2"],
)
def test_monai_values_and_gradients(sizes: dict[str, Any], size: tuple[int, ...]) -> None:
    theirs, ours = both(sizes)
    x = drawn(2 if len(size) == 2 else 1, 2, *size, dtype=torch.float64)
    wanted, found = theirs(x), ours(x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    if len(size) == 3:
        return  # gradients in 3-D, slow in float64, are an exact claim of the card
    weight = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view_as(wanted)
    for logits in (wanted, found):
        (logits * weight).sum().backward()
    gradients = deepcopy(ours)
    gradients.load_state_dict({name: p.grad for name, p in ours.named_parameters()})
    mapped = gradients.monai_state_dict()
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            mapped[name], parameter.grad, rtol=1e-7, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_state_dict_is_monais_and_comes_back() -> None:
    theirs, ours = both(SMALL)
    given = theirs.state_dict()
    found = ours.monai_state_dict()
    assert found.keys() == given.keys()
    for name, value in given.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    fresh = SwinUNETR(2, 3, **SMALL).double()
    fresh.load_monai_state_dict({f"module.{n}": v for n, v in found.items() if not n.endswith("index")})
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), ours.parameters(), strict=True))


def test_encoder_alone_takes_a_pretrained_encoder() -> None:
    whole = SwinUNETR(2, 3, **FLAT, use_v2=True)
    encoder = SwinEncoder(2, **FLAT, use_v2=True)
    encoder.load_monai_state_dict(whole.monai_state_dict())
    x = drawn(1, 2, 64, 96)
    for one, other in zip(encoder(x), whole.encode(x), strict=True):
        assert torch.equal(one, other)
    own = {f"module.{n.replace('.mlp.linear', '.mlp.fc')}": v for n, v in encoder.monai_state_dict().items()}
    again = SwinEncoder(2, **FLAT, use_v2=True)
    again.load_monai_state_dict(own)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), encoder.parameters(), strict=True))


def test_what_is_missing_left_over_or_of_another_shape_is_named_and_nothing_is_loaded() -> None:
    model = SwinUNETR(2, 3, **FLAT)
    before = deepcopy(model.state_dict())
    given = {name: value + 1 for name, value in model.monai_state_dict().items()}
    for change, message in (
        ({"out.conv.conv.bias": None}, "missing: out.conv.conv.bias"),
        ({"extra.weight": torch.zeros(1)}, "left over: extra.weight"),
        ({"out.conv.conv.bias": torch.zeros(4)}, r"out.conv.conv.bias: got the shape \(4,\), wanted \(3,\)"),
        ({"swinViT.layers1.0.blocks.0.norm1.weight": None}, "missing: layers1.0.blocks.0.norm1.weight"),
    ):
        changed = {name: value for name, value in (given | change).items() if value is not None}
        with pytest.raises(ValueError, match=message):
            model.load_monai_state_dict(changed)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="every name that begins with swinViT"):
        model.load_monai_state_dict({n: v for n, v in given.items() if not n.startswith("swinViT.")})


def test_five_resolutions() -> None:
    with torch.device("meta"):
        maps = SwinUNETR(4, 3, 48).encode(torch.zeros(1, 4, 96, 64, 128))
    assert [tuple(m.shape[1:]) for m in maps] == [(48 * 2**i, *(s >> i + 1 for s in (96, 64, 128))) for i in range(5)]


def test_maps_leave_the_encoder_normalised_and_the_path_between_stages_is_not() -> None:
    x = drawn(1, 2, 64, 64)
    encoder = SwinEncoder(2, **FLAT).eval()
    for map in encoder(x):
        torch.testing.assert_close(map.mean(1), torch.zeros_like(map[:, 0]), atol=1e-5, rtol=0)
    raw = SwinEncoder(2, **FLAT, normalize=False).eval()
    raw.load_state_dict(encoder.state_dict())
    for one, other in zip(encoder(x), raw(x), strict=True):
        expected = nn.functional.layer_norm(other.movedim(1, -1), other.shape[1:2]).movedim(-1, 1)
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize(("axes", "size"), [(2, (70, 33)), (2, (20, 20)), (3, (33, 20, 40))])
def test_padding_takes_any_size(axes: int, size: tuple[int, ...]) -> None:
    model = SwinUNETR(2, 3, **{**SMALL, "spatial_dims": axes}, pad_input=True).eval()
    x = drawn(1, 2, *size)
    with torch.no_grad():
        found = model(x)
        assert found.shape == (1, 3, *size)
        fitted = [max(-(-s // 32) * 32, 0) for s in size]
        fitted[-1] = max(fitted[-1], 64) if max(fitted) < 64 else fitted[-1]
        larger = torch.zeros(1, 2, *fitted)
        larger[(..., *(slice(s) for s in size))] = x
        assert torch.equal(found, model(larger)[(..., *(slice(s) for s in size))])


def test_an_input_that_needs_no_padding_is_not_padded() -> None:
    model = SwinUNETR(2, 3, **FLAT).eval()
    padding = deepcopy(model)
    padding.pad_input = True
    x = drawn(1, 2, 64, 32)
    assert torch.equal(model(x), padding(x))


def test_the_exact_bias_differs_where_windows_are_clamped_and_only_there() -> None:
    x = drawn(1, 2, 64, 96)
    for window, same in ((7, False), (2, True)):
        cut = SwinUNETR(2, 3, **FLAT, window_size=window).eval()
        with torch.no_grad():
            for name, parameter in cut.named_parameters():
                if name.endswith("table"):
                    parameter.normal_()
        exact = SwinUNETR(2, 3, **FLAT, window_size=window, clamped_bias="exact").eval()
        exact.load_state_dict(cut.state_dict())
        assert torch.allclose(cut(x), exact(x), atol=1e-5) == same


def test_the_first_merging_of_monai_misses_two_neighbours() -> None:
    x = drawn(1, 2, 64, 32, 32)
    old = SwinUNETR(2, 3, **SMALL, downsample="merging-legacy").eval()
    new = SwinUNETR(2, 3, **SMALL).eval()
    new.load_state_dict(old.state_dict())
    assert not torch.allclose(old(x), new(x), atol=1e-3)
    with torch.no_grad():
        with_weight = old.encoder.merges[0].reduction.weight
        shares = with_weight.view(24, 8, 12)
        # neighbours 5 and 6 of the old order are its 2 and 3 once more: what they add can be added there instead
        assert old.encoder.merges[0].offsets[5] == old.encoder.merges[0].offsets[2]
        assert old.encoder.merges[0].offsets[6] == old.encoder.merges[0].offsets[3]
        assert shares.shape == (24, 8, 12)


def test_checkpointing_changes_no_gradient() -> None:
    plain = SwinUNETR(2, 3, **FLAT, dropout_path_rate=0.3, drop_rate=0.1).double()
    kept = SwinUNETR(2, 3, **FLAT, dropout_path_rate=0.3, drop_rate=0.1, use_checkpoint=True).double()
    kept.load_state_dict(plain.state_dict())
    x = drawn(2, 2, 64, 64, dtype=torch.float64)
    for model in (plain, kept):
        torch.manual_seed(3)
        model(x).square().mean().backward()
    for one, other in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_network_can_be_copied_pickled_and_cast() -> None:
    model = SwinUNETR(2, 3, **FLAT).eval()
    x = drawn(1, 2, 64, 64)
    wanted = model(x)
    for other in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), wanted)
    low = deepcopy(model).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(low.float().flatten(), wanted.flatten(), 0) > 0.98
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.cosine_similarity(model(x).float().flatten(), wanted.flatten(), 0) > 0.98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_size": 20}, "feature_size: got 20, wanted a multiple of 12"),
        ({"spatial_dims": 4}, "spatial_dims: got 4, wanted 2 or 3"),
        ({"downsample": "max"}, "downsample: got 'max', wanted one of merging, mergingv2, merging-legacy"),
        ({"downsample": "merging-legacy", "spatial_dims": 2}, "downsample: got 'merging-legacy' with spatial_dims=2"),
        ({"clamped_bias": "none"}, "clamped_bias: got 'none'"),
        ({"patch_size": 4}, "patch_size: got 4, wanted 2"),
        ({"patch_size": 1}, "patch_size: got 1, wanted 2"),
        ({"in_channels": 0}, "in_channels: got 0"),
        ({"out_channels": 0}, "out_channels: got 0"),
        ({"depths": (2, 2, 2)}, r"depths: got \(2, 2, 2\), wanted 4 numbers"),
        ({"drop_rate": 1.0}, "drop_rate: got 1.0"),
        ({"window_size": (7, 7)}, r"window: got \(7, 7\), wanted 3 numbers"),
        ({"num_heads": (5, 6, 12, 24)}, "dim: got 24, wanted a multiple of num_heads=5"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinUNETR(**{"in_channels": 4, "out_channels": 3, **options})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 64, 40), r"those of the axes \[3\] are no multiples of 32"),
        ((1, 2, 50, 40), r"those of the axes \[2, 3\] are no multiples of 32"),
        ((1, 2, 32, 32), "at least 64 on one axis"),
        ((1, 2, 64, 64, 64), r"wanted \(B, 2, and 2 spatial axes\)"),
        ((1, 3, 64, 64), r"wanted \(B, 2, and 2 spatial axes\)"),
        ((0, 2, 64, 64), "which is empty"),
        ((1, 2, 64, 0), "which is empty"),
    ],
)
def test_inputs_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinUNETR(2, 3, **FLAT)(torch.zeros(shape))


@pytest.mark.parametrize("model", [SwinUNETR(2, 3, **FLAT), SwinEncoder(2, **FLAT)], ids=["whole", "encoder"])
def test_other_types_empty_batches_and_ranks_are_refused(model: nn.Module) -> None:
    for dtype, message in (
        (torch.long, "x: got torch.int64, wanted a floating-point tensor"),
        (torch.float64, "x: got torch.float64, wanted torch.float32, that of the weights, or autocast"),
    ):
        with pytest.raises(TypeError, match=message):
            model(torch.zeros(1, 2, 64, 64, dtype=dtype))
    for shape in ((0, 2, 64, 64), (1, 3, 64, 64), (1, 2, 64, 64, 64)):
        with pytest.raises(ValueError, match="x: got the shape"):
            model(torch.zeros(shape))


def test_gradients_of_each_sample_by_func() -> None:
    model, x = SwinUNETR(2, 3, **FLAT).eval(), drawn(2, 2, 64, 64)

    def loss(weights: dict[str, Any], one: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (one.unsqueeze(0),)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)
    model(x[1:]).square().sum().backward()
    torch.testing.assert_close(found["out.weight"][1], model.out.weight.grad, rtol=1e-3, atol=1e-3)


def test_it_exports_before_and_after_a_call() -> None:
    model, x = SwinUNETR(2, 3, **FLAT).eval(), drawn(1, 2, 96, 64)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)
