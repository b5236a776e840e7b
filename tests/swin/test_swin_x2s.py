"""Swin-X2S: its parts, its names, and what the two views share."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperworks.swin.swin_x2s import CrossViewAttention, DimensionExpansion, SwinX2S, swin_x2s
from paperworks.swin.swin_x2s.network import SIZES
from paperworks.swin.unet_parts import ResidualBlock

SMALL: dict[str, Any] = {
    "img_size": (32, 32, 64), "out_channels": 3, "feature_size": 4, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4),
    "drop_path_rate": 0.0,
}  # fmt: skip


def small(**options: Any) -> SwinX2S:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return SwinX2S(**{**SMALL, **options})


def views(batch: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, batch, 1, 32, 64, generator=torch.Generator().manual_seed(seed))
    return a, b


def spread(model: nn.Module) -> nn.Module:
    """Weights that are all different, so that a mistaken name shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def test_expansion_scales_and_shifts_each_plane() -> None:
    expand, map = DimensionExpansion(3), torch.randn(2, 4, 5, 6)
    for axis in (0, 1):
        planes = expand(map, axis)
        assert planes.shape == ((2, 4, 3, 5, 6), (2, 4, 5, 3, 6))[axis]
        assert all(torch.equal(planes.select(2 + axis, d), map) for d in range(3))
    with torch.no_grad():
        expand.weight.view(-1).copy_(torch.tensor([1.0, 2.0, 3.0]))
        expand.bias.copy_(torch.tensor([0.0, -1.0, 1.0]))
    torch.testing.assert_close(expand(map, 1)[:, :, :, 1], 2 * map - 1)
    conv = nn.Conv3d(1, 3, 1)
    conv.load_state_dict(expand.state_dict())
    volume = conv(map.flatten(0, 1).unsqueeze(1).unsqueeze(2)).view(2, 4, 3, 5, 6)
    torch.testing.assert_close(expand(map, 0), volume)
    for wrong, words in (((map, 2), "axis: got 2"), ((map[0], 0), "x: got the shape")):
        with pytest.raises(ValueError, match=words):
            expand(*wrong)
    with pytest.raises(ValueError, match="depth: got 0"):
        DimensionExpansion(0)


def test_cross_attention_is_its_equation() -> None:
    fusion = spread(CrossViewAttention(8, 2, 1, 12)).double()
    a, b = torch.randn(2, 2, 8, 2, 2, 3, dtype=torch.float64)
    layer: Any = fusion.layer[0]

    def tokens(x: Tensor) -> Tensor:
        return layer.attention_norm(fusion.patch_embeddings(x).flatten(2).transpose(1, 2) + fusion.position_embeddings)

    x, y = tokens(a), tokens(b)
    for one, other, found in zip((x, y), (y, x), fusion(a, b), strict=True):
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            q, k, v = (
                layer.attn.query(one)[..., part],
                layer.attn.key(other)[..., part],
                layer.attn.value(other)[..., part],
            )
            heads.append((q @ k.transpose(1, 2) / 2).softmax(-1) @ v)
        wanted = fusion.encoder_norm(layer.attn.out(torch.cat(heads, -1)))
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), wanted)


def test_cross_attention_swaps_with_its_inputs_and_keeps_nothing_of_its_own_view() -> None:
    fusion = CrossViewAttention(8, 2, 1, 12)
    a, b, c = torch.randn(3, 1, 8, 2, 2, 3)
    (to_a, to_b), (again_b, again_a) = fusion(a, b), fusion(b, a)
    assert torch.equal(to_a, again_a)
    assert torch.equal(to_b, again_b)
    with torch.no_grad():  # one token of the other view: what arrives is that token, whatever asked for it
        single = CrossViewAttention(8, 2, 1, 1)
        one, two, three = (t[..., :1, :1, :1] for t in (a, b, c))
        torch.testing.assert_close(single(one, two)[0], single(three, two)[0])
        kept = CrossViewAttention(8, 2, 1, 1, residual=True)
        assert (kept(one, two)[0] - kept(three, two)[0]).abs().max() > 1e-3
        alone = CrossViewAttention(8, 2, 0, 12)
        torch.testing.assert_close(alone(a, b)[0], alone(a, c)[0])
    with pytest.raises(ValueError, match="dim: got 8, wanted a multiple of num_heads=3"):
        CrossViewAttention(8, 3, 1, 12)
    with pytest.raises(ValueError, match="a, b: got the shapes"):
        fusion(a, b[..., :2])


def test_both_views_in_one_batch_give_what_each_gives_alone() -> None:
    model = spread(small()).double().eval()
    xa, xb = (x.double() for x in views(2))
    found = model(xa, xb)
    a, b = model.encode(xa, "a"), model.encode(xb, "b")
    deep = model.cross_atte6(a[-1], b[-1])
    for skips, z, logits in zip((a, b), deep, found, strict=True):
        torch.testing.assert_close(model._decoded(z, skips[:-1]), logits)
    assert [tuple(v.shape[1:]) for v in a] == [(4 * 2 ** max(0, i - 1), 32 >> i, 32 >> i, 64 >> i) for i in range(6)]
    assert torch.equal(model.predict(xa, xb), (found[0] + found[1]).argmax(1))
    # cutting the batch changes nothing either
    torch.testing.assert_close(model(xa[1:], xb[1:])[0], found[0][1:])


def test_view_a_spreads_along_y_and_view_b_along_x() -> None:
    model = small().double().eval()
    xa, xb = (x.double() for x in views())
    # at first every plane of an expanded map is the same, so what the residual block makes is too, but for the edge
    inner = slice(6, -6)
    a, b = model.encode(xa, "a")[1][..., inner, :], model.encode(xb, "b")[1][:, :, inner]
    torch.testing.assert_close(a, a[..., :1, :].expand_as(a))
    torch.testing.assert_close(b, b[:, :, :1].expand_as(b))


def test_the_encoder_block_is_the_shared_residual_block() -> None:
    model = small().double().eval()
    xa, _ = (x.double() for x in views())
    plain = ResidualBlock(3, 1, 4).double()
    plain.load_state_dict(model.encoder1.layer.state_dict())
    torch.testing.assert_close(model.encode(xa, "a")[0], plain(xa.unsqueeze(3).expand(-1, -1, -1, 32, -1)))


@pytest.mark.parametrize("name", ["logits_a", "logits_b"])
def test_every_weight_gets_a_gradient_from_either_view(name: str) -> None:
    model = spread(small()).double()
    xa, xb = (x.double() for x in views())
    model(xa, xb)[("logits_a", "logits_b").index(name)].square().mean().backward()
    # softmax does not see what is added to all keys, so the bias of the keys has none of either
    silent = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-15]
    assert [n for n in silent if not n.endswith("attn.key.bias")] == []


def test_a_window_is_settled_when_the_network_is_built() -> None:
    model = small()  # maps of 16 x 32, 8 x 16, 4 x 8 and 2 x 4
    tables = [stage.blocks[0].attn.bias.relative_position_bias_table for stage in model.swinViT.stages]
    assert [len(t) for t in tables] == [13 * 13, 13 * 13, 7 * 15, 3 * 7]
    assert model.swinViT.stages[2].blocks[1].shift == (2, 4)  # half of its window, which the clamp then leaves off


def test_official_names_and_back() -> None:
    model = spread(small())
    weights = model.official_state_dict()
    for name in (
        "swinViT.patch_embed.proj.weight", "swinViT.patch_embed.norm.bias", "swinViT.norm.weight",
        "swinViT.layers.2.blocks.1.attn.relative_position_bias_table", "swinViT.layers.0.blocks.0.attn.qkv.weight",
        "swinViT.layers.3.downsample.reduction.weight", "swinViT.layers.1.downsample.norm.weight",
        "swinViT.layers.3.norm.weight", "swinViT.layers.0.blocks.0.mlp.fc1.bias", "expand_.5.weight", "expand_.0.bias",
        "encoder1.layer.conv3.conv.weight", "encoder10.layer.conv2.conv.weight", "decoder5.transp_conv.conv.weight",
        "decoder1.conv_block.conv1.conv.weight", "out.conv.conv.bias", "cross_atte6.position_embeddings",
        "cross_atte6.patch_embeddings.weight", "cross_atte6.layer.0.attention_norm.weight",
        "cross_atte6.layer.0.attn.query.weight", "cross_atte6.encoder_norm.bias",
    ):  # fmt: skip
        assert name in weights, name
    assert weights["expand_.5.weight"].shape == (1, 1, 1, 1, 1)
    assert weights["swinViT.layers.3.norm.weight"].shape == (64,)
    block = "swinViT.layers.0.blocks"
    masks = {f"{block}.1.attn_mask": torch.zeros(1), f"{block}.0.attn.relative_position_index": torch.zeros(1)}
    other = spread(small(fusion_depth=1))
    other.load_official_state_dict({f"module.{name}": value for name, value in (weights | masks).items()})
    xa, xb = views()
    torch.testing.assert_close(other(xa, xb), model(xa, xb), rtol=0, atol=0)


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded() -> None:
    model, weights = small(), spread(small()).official_state_dict()
    before = copy.deepcopy(model.state_dict())
    for change, words in (
        ({"decoder9.x": torch.zeros(1)}, "left over: decoder9.x"),
        ({"out.conv.conv.bias": torch.zeros(7)}, r"out.conv.conv.bias: got the shape \(7,\)"),
        ({"swinViT.layers.0.x": torch.zeros(1)}, "left over: layers.0.x"),
    ):
        with pytest.raises(ValueError, match=words):
            model.load_official_state_dict({**weights, **change})
    with pytest.raises(ValueError, match=r"missing: out\.conv\.conv\.bias"):
        model.load_official_state_dict({n: v for n, v in weights.items() if n != "out.conv.conv.bias"})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_a_module_like_others() -> None:
    model = small().eval()
    xa, xb = views()
    wanted = model(xa, xb)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(xa, xb), wanted, rtol=0, atol=0)
    kept = small(use_checkpoint=True).eval()
    kept.load_state_dict(model.state_dict())
    one, two = (
        torch.autograd.grad(m(xa, xb)[0].square().mean(), list(m.parameters()), allow_unused=True)
        for m in (model, kept)
    )
    torch.testing.assert_close(one, two)
    assert model.no_weight_decay() == {n for n in model.state_dict() if "bias_table" in n}
    assert model.predict(xa, xb).dtype == torch.int64
    # channels: several views in one image
    many = small(in_channels=2)
    assert many(torch.randn(1, 2, 32, 64), torch.randn(1, 2, 32, 64))[1].shape == (1, 3, 32, 32, 64)


@pytest.mark.slow
def test_under_autocast() -> None:
    model = small().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one = model(*views())[0]
    assert one.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(one.float(), model(*views())[0], rtol=0.1, atol=0.1)


def test_sizes_by_name() -> None:
    assert set(SIZES) == {"tiny", "small", "base", "large"}
    with torch.device("meta"):
        model = swin_x2s("tiny", img_size=(64, 64, 64), out_channels=2)
    assert len(model.swinViT.stages[2].blocks) == 6
    with pytest.raises(ValueError, match="size: got 'huge'"):
        swin_x2s("huge")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": (32, 64, 64)}, "img_size: got .* wanted X = Y"),
        ({"img_size": (48, 48, 64)}, "img_size: got .* multiples of 32"),
        ({"img_size": (32, 32, 32)}, "img_size: got .* single voxel"),
        ({"img_size": (64, 64)}, "img_size: got"),
        ({"out_channels": 1}, "out_channels: got 1"),
        ({"in_channels": 0}, "in_channels: got 0"),
        ({"depths": (2, 2, 2)}, "depths: got"),
        ({"fusion_depth": -1}, "num_layers: got -1"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)


def test_bad_views() -> None:
    model = small()
    xa, xb = views()
    for given, words in (
        ((xa.transpose(2, 3), xb), "xa: got the shape"),
        ((xa, xb[:, :, :16]), "xb: got the shape"),
        ((xa[:0], xb[:0]), "xa: got the shape .* not empty"),
        ((xa, torch.cat([xb, xb])), "xb: got a batch of 2"),
    ):
        with pytest.raises(ValueError, match=words):
            model(*given)
    with pytest.raises(TypeError, match=r"xa: got torch\.int64"):
        model(xa.long(), xb)
    with pytest.raises(ValueError, match="view: got 'c'"):
        model.encode(xa, "c")  # type: ignore[arg-type]
