"""Gated retention: its equations against loops, limits, masks, windows, and what users do with modules."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.gated_swinrmt import (
    GatedRetention,
    ManhattanRetention,
    SwinRMTBlock,
    adaptive_window,
    balanced_alibi_slopes,
    manhattan_log_decay,
)
from paperworks.swin.gated_swinrmt.decay import rotary_tables, rotate
from paperworks.swin.gated_swinrmt.windows import MapWindows
from paperworks.swin.windows import shift_mask

VARIANTS = ("retention", "swat")


def attention(
    variant: str, dim: int = 8, heads: int = 2, window: tuple[int, int] = (3, 4), **options
) -> GatedRetention:
    torch.manual_seed(0)
    made = GatedRetention(dim, heads, window, variant, dtype=torch.double, **options)
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    return made


def by_loops(m: GatedRetention, x: Tensor, allowed: Tensor) -> Tensor:
    """One window (h, w, C), token by token as the equations stand; `allowed` is (h w, h w)."""
    h, w, C = x.shape
    H, D = m.num_heads, C // m.num_heads
    gamma = [1 - 2 ** -(m.initial_value + m.heads_range * k / H) for k in range(H)]
    slopes = balanced_alibi_slopes(H).double()
    v_all = m.v_proj(x) if m.v_gate is None else F.silu(m.v_gate(x)) * m.v_proj(x)
    q_all, k_all = m.q_proj(x), m.k_proj(x) / math.sqrt(D)

    def turned(row: int, col: int, vector: Tensor) -> Tensor:
        z = torch.view_as_complex(vector.view(D // 2, 2).contiguous())
        theta = torch.tensor([10000 ** (-i / (D // 2 - 1)) for i in range(D // 2)], dtype=torch.double)
        return torch.view_as_real(z * torch.polar(torch.ones(D // 2).double(), (row * w + col) * theta)).flatten()

    out = torch.zeros(h, w, C, dtype=torch.double)
    for head in range(H):
        part = slice(head * D, head * D + D)
        q, k = ({(r, c): turned(r, c, t[r, c, part]) for r in range(h) for c in range(w)} for t in (q_all, k_all))
        v = {(r, c): v_all[r, c, part] for r in range(h) for c in range(w)}

        def one_pass(v, line, q=q, k=k, head=head):
            found = {}
            for r, c in v:
                keys, weights = [], []
                for key, distance in line(r, c):
                    if allowed[r * w + c, key[0] * w + key[1]]:
                        s = q[r, c] @ k[key]
                        keys.append(v[key])
                        if m.variant == "retention":
                            weights.append(s + distance * math.log(gamma[head]))
                        else:
                            weights.append(torch.sigmoid(s - slopes[head] * distance) * gamma[head] ** distance)
                weights = torch.stack(weights)
                weights = weights.softmax(0) if m.variant == "retention" else weights / max(weights.sum(), 1)
                found[r, c] = (weights[:, None] * torch.stack(keys)).sum(0)
            return found

        v = one_pass(v, lambda r, c: [((r, j), abs(c - j)) for j in range(w)])
        v = one_pass(v, lambda r, c: [((i, c), abs(r - i)) for i in range(h)])
        for (r, c), value in v.items():
            out[r, c, part] = value
    out = out + F.conv2d(v_all.permute(2, 0, 1)[None], m.lce.weight, m.lce.bias, padding=2, groups=C)[0].permute(
        1, 2, 0
    )
    return m.out_proj(out if m.gate is None else out * torch.sigmoid(m.gate(x)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_equations(variant: str, masked: bool) -> None:
    m, x = attention(variant), torch.randn(4, 3, 4, 8, dtype=torch.double)
    region = (torch.arange(12).view(3, 4) % 4 >= 2).long().flatten() if masked else torch.zeros(12, dtype=torch.long)
    mask = region[:, None] == region
    masks = torch.stack([mask, torch.ones_like(mask)])
    found = m(x, masks if masked else None)
    for i in range(4):
        torch.testing.assert_close(found[i], by_loops(m, x[i], masks[i % 2]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_map_of_both_passes_is_what_the_passes_do(variant: str) -> None:
    m, x = attention(variant), torch.randn(2, 3, 4, 8, dtype=torch.double)
    mask = torch.rand(2, 12, 12) > 0.3
    q, k = m._queries_and_keys(x)
    v = torch.randn_like(q)
    wanted = m._passes(q, k, v, m._masks(mask, 2, 3, 4))
    found = m.attention_map(x, mask) @ v.flatten(1, 2).transpose(1, 2)
    torch.testing.assert_close(found.transpose(1, 2).reshape(v.shape), wanted)


def test_retention_without_scores_is_the_manhattan_prior() -> None:
    m = attention("retention", dim=12, heads=3)
    for layer in (m.q_proj, m.k_proj):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    found = m.attention_map(torch.randn(1, 3, 4, 12, dtype=torch.double))[0]
    row, col = torch.arange(12) // 4, torch.arange(12) % 4
    distance = (row[:, None] - row).abs() + (col[:, None] - col).abs()
    gamma = (1 - 2 ** -(2 + 4 * torch.arange(3, dtype=torch.double) / 3))[:, None, None]
    ratio = found / found.diagonal(dim1=1, dim2=2)[..., None]
    torch.testing.assert_close(ratio, gamma**distance, rtol=1e-12, atol=0)


def test_swat_keeps_a_row_of_little_evidence_small() -> None:
    m = attention("swat")
    for layer, bias in ((m.q_proj, 1.0), (m.k_proj, 0.0)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    x = torch.randn(1, 3, 4, 8, dtype=torch.double)
    sums = m.attention_map(x).sum(-1)
    assert bool((sums <= 1 + 1e-12).all())
    alone = m.attention_map(x, torch.eye(12, dtype=torch.bool)[None])
    torch.testing.assert_close(alone, torch.eye(12, dtype=torch.double).mul(0.25).expand(1, 2, 12, 12))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_without_any_key(variant: str) -> None:
    m, x = attention(variant), torch.randn(2, 12, 8, dtype=torch.double)
    found = m.attention_map(x, torch.zeros(1, 12, 12, dtype=torch.bool))
    wanted = torch.eye(12, dtype=torch.double) if variant == "retention" else torch.zeros(12, 12, dtype=torch.double)
    torch.testing.assert_close(found, wanted.expand_as(found))
    y = m(x.requires_grad_(), torch.full((1, 12, 12), -math.inf))
    y.sum().backward()
    assert bool(torch.isfinite(y).all())
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_of_either_kind_and_the_shape_of_windows(variant: str) -> None:
    m = attention(variant, window=(4, 4))
    x = torch.randn(8, 16, 8, dtype=torch.double)
    mask = shift_mask((8, 8), (4, 4), (2, 2))
    assert mask is not None
    wanted = m(x, mask)
    assert not torch.allclose(wanted, m(x))
    for low in (-50.0, -100.0, -math.inf):
        torch.testing.assert_close(m(x, torch.zeros(mask.shape).masked_fill(~mask, low)), wanted)
    windows = MapWindows((8, 8), (4, 4), (2, 2))
    torch.testing.assert_close(m(x.view(8, 4, 4, 8), windows.masks(x.device)).view(8, 16, 8), wanted)
    softer = m(x, torch.zeros(mask.shape, dtype=torch.double).masked_fill(~mask, -3.0))
    assert not torch.allclose(softer, wanted)


def test_gamma_and_slopes() -> None:
    assert manhattan_log_decay(4).exp().tolist() == pytest.approx([1 - 2 ** -(2 + k) for k in range(4)])
    assert manhattan_log_decay(4).dtype == torch.float32
    assert balanced_alibi_slopes(5).tolist() == [2**-4, 2**-8, 0, -(2**-4), -(2**-8)]
    for heads in range(1, 33):
        assert math.fsum(balanced_alibi_slopes(heads).tolist()) == 0
    assert (manhattan_log_decay(8) < 0).all()


def test_windows_of_an_axis() -> None:
    assert [adaptive_window(size, 7) for size in (56, 28, 14, 7, 8, 4, 2, 1, 31, 13)] == [
        (7, 0), (7, 0), (7, 0), (7, 0), (8, 0), (4, 0), (2, 0), (1, 0), (7, 4), (13, 0),
    ]  # fmt: skip
    assert adaptive_window(12, 7) == (6, 0)
    assert adaptive_window(40, 6) == (5, 0)
    assert adaptive_window(24, 7) == (8, 0), "6 and 8 are as near: the larger"


@given(size=st.integers(1, 200), window=st.integers(1, 40))
def test_windows_fill_the_padded_axis(size: int, window: int) -> None:
    found, padding = adaptive_window(size, window)
    assert (size + padding) % found == 0
    assert 0 <= padding < found
    assert padding == 0 or found == window
    assert found <= max(size, window)


def test_rotation_depends_on_the_difference_of_places() -> None:
    tables = rotary_tables(1, 9, 8, torch.double, torch.device("cpu"))
    q, k = (torch.randn(8, dtype=torch.double).expand(1, 1, 9, 1, 8) for _ in range(2))
    scores = rotate(q, tables)[0, 0, :, 0] @ rotate(k, tables)[0, 0, :, 0].T
    for offset in range(-8, 9):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_one_window_and_no_gate_is_rmt() -> None:
    gated, rmt = attention("retention", gate=False), ManhattanRetention(8, 2, dtype=torch.double)
    rmt.load_state_dict(gated.state_dict())
    x = torch.randn(2, 5, 7, 8, dtype=torch.double)
    torch.testing.assert_close(gated(x), rmt(x))
    full = ManhattanRetention(8, 2, decomposed=False, dtype=torch.double)
    full.load_state_dict(gated.state_dict())
    assert not torch.allclose(full(x), rmt(x))
    torch.testing.assert_close(full(x[:, :1]), rmt(x[:, :1]), msg="on one row both are the same")
    torch.testing.assert_close(full.attention_map(x).sum(-1), torch.ones(2, 2, 35, dtype=torch.double))


def test_full_retention_decays_with_manhattan_distance() -> None:
    full = ManhattanRetention(8, 2, decomposed=False, rotary=False, dtype=torch.double)
    nn.init.zeros_(full.q_proj.weight)
    nn.init.zeros_(full.q_proj.bias)
    found = full.attention_map(torch.randn(1, 2, 3, 8, dtype=torch.double))[0, 0]
    assert float((found[0, 5] / found[0, 0]).detach()) == pytest.approx(0.75**3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_pad_shift_and_never_attend_to_padding(variant: str) -> None:
    torch.manual_seed(0)
    block = SwinRMTBlock(8, 2, 7, True, variant, dtype=torch.double)
    windows = MapWindows.adapted((31, 14), (7, 7), True)
    assert (windows.window, windows.shift, windows.grid) == ((7, 7), (3, 3), (35, 14))
    x = torch.randn(2, 31, 14, 8, dtype=torch.double)
    assert torch.equal(windows.join(windows.cut(x)), x)
    masks = windows.masks(x.device)
    real = windows.cut(torch.ones(1, 31, 14, 1)).flatten(1).bool()
    seen = block.attn.attention_map(windows.cut(x), masks)
    kept = real.repeat(2, 1)[:, None, :, None] & ~real.repeat(2, 1)[:, None, None, :]
    assert not bool(seen[kept.expand_as(seen)].any())
    assert block(x).shape == x.shape


def test_a_block_without_shift_commutes_with_a_move_by_one_window() -> None:
    block = SwinRMTBlock(8, 2, 4, dtype=torch.double)
    nn.init.zeros_(block.pos.weight)
    nn.init.zeros_(block.mlp.dwconv.weight)
    x = torch.randn(1, 12, 16, 8, dtype=torch.double)
    torch.testing.assert_close(block(x.roll((4, -4), (1, 2))), block(x).roll((4, -4), (1, 2)))


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3), h=st.integers(1, 5), w=st.integers(1, 5), heads=st.integers(1, 3),
    variant=st.sampled_from(VARIANTS), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_shapes_types_and_strides(batch: int, h: int, w: int, heads: int, variant: str, dtype: torch.dtype) -> None:
    m = GatedRetention(4 * heads, heads, (h, w), variant, dtype=dtype)
    x = torch.randn(batch, w, h, 4 * heads).to(dtype).transpose(1, 2)
    y = m(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    flat = m(x.flatten(1, 2))
    torch.testing.assert_close(flat.view(y.shape), y)
    block = SwinRMTBlock(4 * heads, heads, 2, True, variant, dtype=dtype)
    assert block(x).shape == x.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_near_single(variant: str) -> None:
    m = GatedRetention(32, 2, (7, 7), variant)
    x = torch.randn(4, 49, 32)
    wanted = m(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(m(x).float(), wanted, rtol=0.1, atol=0.03)
    torch.testing.assert_close(copy.deepcopy(m).half()(x.half()).float(), wanted, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_to_second_order(variant: str) -> None:
    m = attention(variant, dim=4, heads=1, window=(2, 3), lce_kernel=3)
    x = torch.randn(2, 6, 4, dtype=torch.double, requires_grad=True)
    mask = torch.rand(1, 6, 6) > 0.3
    assert torch.autograd.gradcheck(lambda t: m(t, mask), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: m(t, mask), x, fast_mode=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_copies_and_per_sample_gradients(variant: str) -> None:
    m = attention(variant)
    names = {name.rpartition(".")[0] for name in m.state_dict()}
    assert names == {"q_proj", "k_proj", "v_proj", "out_proj", "lce", "gate" if variant == "retention" else "v_gate"}
    x = torch.randn(3, 12, 8, dtype=torch.double)
    y = m(x)
    file = io.BytesIO()
    torch.save(m.state_dict(), file)
    file.seek(0)
    again = attention(variant)
    again.load_state_dict(torch.load(file, weights_only=True))
    for other in (again, copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(other(x), y)
    parameters = {name: p.detach() for name, p in m.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(m, parameters, (sample[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    summed = torch.autograd.grad(m(x).square().sum(), tuple(m.parameters()))
    for (name, _), wanted in zip(m.named_parameters(), summed, strict=True):
        torch.testing.assert_close(found[name].sum(0), wanted)
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y)


def test_tables_made_in_inference_mode_serve_training() -> None:
    m = GatedRetention(12, 3, (5, 2))
    x = torch.randn(1, 10, 12)
    with torch.inference_mode():
        m(x)
    m(x).sum().backward()
    assert m.q_proj.weight.grad is not None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GatedRetention(10, 4), "dim: got 10, wanted a multiple of num_heads=4"),
        (lambda: GatedRetention(6, 2), "dim: got 3 channels a head, wanted an even number from 4"),
        (lambda: GatedRetention(4, 2), "dim: got 2 channels a head"),
        (lambda: GatedRetention(8, 2, variant="both"), "variant: got 'both'"),
        (lambda: GatedRetention(8, 2, (7, 0)), "window_size: got .7, 0."),
        (lambda: GatedRetention(8, 2, lce_kernel=4), "lce_kernel: got 4, wanted an odd number"),
        (lambda: GatedRetention(8, 2, initial_value=-1), "initial_value: got"),
        (lambda: GatedRetention(8, 2)(torch.zeros(1, 48, 8)), r"x: got the shape \(1, 48, 8\), wanted"),
        (lambda: GatedRetention(8, 2)(torch.zeros(1, 7, 7, 9)), "x: got the shape"),
        (lambda: GatedRetention(8, 2)(torch.zeros(3, 49, 8), torch.ones(2, 49, 49)), "mask: got 2 windows"),
        (
            lambda: GatedRetention(8, 2)(torch.zeros(2, 49, 8), torch.ones(2, 49, 48)),
            r"mask: got the shape \(2",
        ),
        (lambda: ManhattanRetention(8, 2)(torch.zeros(2, 49, 8)), r"wanted \(B, H, W, 8\)"),
        (lambda: SwinRMTBlock(8, 2)(torch.zeros(2, 49, 8)), r"wanted \(B, H, W, 8\)"),
        (lambda: balanced_alibi_slopes(0), "num_heads: got 0"),
        (lambda: adaptive_window(0, 7), "size: got 0"),
        (lambda: adaptive_window(7, 0), "window: got 0"),
    ],
)
def test_bad_input_is_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_without_rotary_any_width_of_a_head_will_do() -> None:
    assert GatedRetention(6, 2, (2, 2), rotary=False)(torch.zeros(1, 4, 6)).shape == (1, 4, 6)
