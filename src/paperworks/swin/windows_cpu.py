"""Window attention and GELU in fused CPU loops (`window_attention.c`): float32, first derivatives.

The attention reads queries, keys and values where the projection wrote them and writes its result back in place of
each token: a shifted, padded map is never rolled, padded or cut into windows, and the projections of padding are not
computed. Compared with scaled_dot_product_attention on partitioned windows it saves those copies and products, not the
arithmetic of the attention. GELU keeps its input alone for the backward pass.
"""

from __future__ import annotations

import ctypes
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import native
from paperworks.swin.geometry import Sizes, cyclic_shift, kept, pad_to_window, padded, shift_regions, window_partition

__all__ = ["Layout", "attend", "gelu", "gelu_backward", "layout", "mlp", "usable"]

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {
    "window_attention": [_POINTER] * 6 + [_COUNT] * 7,
    "window_attention_backward": [_POINTER] * 9 + [_COUNT] * 7,
    "gelu": [_POINTER] * 3 + [_COUNT] * 3,
    "gelu_backward": [_POINTER] * 4 + [_COUNT] * 3,
}


def _library() -> Any:
    return native.load(Path(__file__).with_name("window_attention.c"), _FUNCTIONS)


def usable(*tensors: Tensor | None) -> bool:
    """Whether the loops can take these tensors: float32 on the CPU, nothing traced, a compiler at hand."""
    given = [t for t in tensors if t is not None]
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in given)
        and not torch.is_autocast_enabled("cpu")
        and not native.must_be_traceable(*given)
        and _library() is not None
    )


class Layout(NamedTuple):
    """Where the tokens of each window lie on a map.

    Attributes:
        rows: (windows, N) int32, the row of the map, -1 for padding.
        labels: (windows, N) int32, tokens of equal label attend to one another; None where all do.
        space: size of the map.
    """

    rows: Tensor
    labels: Tensor | None
    space: Sizes


@kept
def layout(space: Sizes, window: Sizes, shift: Sizes, order: str = "pad-roll", mask_padding: bool = False) -> Layout:
    """The layout of a map cut into windows, as `paperworks.swin.blocks.WindowBlock` cuts it."""
    with torch.inference_mode(False):
        rows = torch.arange(1, prod(space) + 1, device="cpu").view(1, *space, 1)
        rows = cyclic_shift(rows, shift) if order == "roll-pad" else rows
        rows, _ = pad_to_window(rows, window)
        rows = cyclic_shift(rows, shift) if order == "pad-roll" else rows
        index = window_partition(rows, window).squeeze(-1) - 1
        grid = padded(space, window)
        hidden = mask_padding and grid != space
        labels = None
        if any(shift) or hidden:
            labels = shift_regions(grid, window, shift)
            labels = labels.masked_fill(index < 0, -1) if hidden else labels
        return Layout(index.int().contiguous(), None if labels is None else labels.int().contiguous(), space)


def attend(qkv: Tensor, offset: Tensor | None, bias: Tensor | None, at: Layout, num_heads: int) -> Tensor:
    """Attention inside the windows of a map.

    Args:
        qkv: (B, T, 3 C): queries, keys and values of every token of the map, as one projection without bias gives them.
        offset: (3 C,), added to those of every token, padding included: the projection's bias; zeros if None.
        bias: (heads, N, N), added to the scores.
        at: the windows.
        num_heads: number of heads.

    Returns (B, T, C), with gradients for qkv, offset and bias; derivatives of those are computed by tensor operations.
    """
    if offset is None:
        offset = qkv.new_zeros(qkv.shape[-1])
    found: Tensor = _Attend.apply(qkv, offset, bias, at, num_heads)
    return found


def _by_tensors(qkv: Tensor, offset: Tensor, bias: Tensor | None, at: Layout, num_heads: int) -> Tensor:
    """As `attend`, by tensor operations."""
    batch, tokens, width = qkv.shape
    windows, n = at.rows.shape
    rows = F.pad(qkv, (0, 0, 0, 1)) + offset
    place = torch.where(at.rows < 0, tokens, at.rows).long().reshape(-1)
    parts = rows.index_select(1, place).view(batch, windows, n, 3, num_heads, -1)
    q, k, v = parts.permute(3, 0, 1, 4, 2, 5)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    if at.labels is not None:
        apart = at.labels.unsqueeze(1) != at.labels.unsqueeze(2)
        scores = scores.masked_fill(apart.unsqueeze(1), -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(2, 3).reshape(batch, windows * n, width // 3)
    real = at.rows.reshape(-1) >= 0
    back = torch.empty(tokens, dtype=torch.long).scatter_(0, place[real], real.nonzero().squeeze(1))
    return mixed.index_select(1, back)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, offset: Tensor, bias: Tensor | None, at: Layout, num_heads: int) -> Tensor:
        qkv, offset = qkv.contiguous(), offset.contiguous()
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(qkv, offset, bias)
        ctx.at, ctx.num_heads = at, num_heads
        out = qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)
        given = (qkv, offset, bias, at.rows, at.labels, out)
        _library().window_attention(*map(_pointer, given), *_sizes(qkv, at, num_heads), torch.get_num_threads())
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, offset, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of these gradients are wanted
            wanted = [t for t, need in zip((qkv, offset, bias), ctx.needs_input_grad, strict=False) if need]
            out = _by_tensors(qkv, offset, bias, ctx.at, ctx.num_heads)
            found = iter(torch.autograd.grad(out, wanted, d_out, create_graph=True))
            return (*(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None)
        threads, width = torch.get_num_threads(), qkv.shape[-1]
        n, d_out = ctx.at.rows.shape[1], d_out.contiguous()
        d_qkv, d_offset = torch.empty_like(qkv), qkv.new_zeros(threads, width)
        d_bias = qkv.new_zeros(threads, ctx.num_heads, n, n) if ctx.needs_input_grad[2] else None
        given = (qkv, offset, bias, ctx.at.rows, ctx.at.labels, d_out, d_qkv, d_offset, d_bias)
        _library().window_attention_backward(*map(_pointer, given), *_sizes(qkv, ctx.at, ctx.num_heads), threads)
        return d_qkv, d_offset.sum(0), None if d_bias is None else d_bias.sum(0), None, None


def _sizes(qkv: Tensor, at: Layout, num_heads: int) -> tuple[int, ...]:
    windows, n = at.rows.shape
    return qkv.shape[0], qkv.shape[1], windows, num_heads, n, qkv.shape[2] // 3 // num_heads


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """fc2(GELU(fc1(x))), GELU within 5e-7. Only the product of fc1 is kept for the backward pass."""
    hidden = F.linear(x, fc1.weight)
    offset = hidden.new_zeros(hidden.shape[-1]) if fc1.bias is None else fc1.bias
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (hidden, offset, fc2.weight, fc2.bias)
    ):
        found: Tensor = _GeluLinear.apply(hidden, offset, fc2.weight, fc2.bias)
        return found
    return F.linear(gelu(hidden, offset, hidden), fc2.weight, fc2.bias)


def _rows(x: Tensor) -> tuple[int, int, int]:
    return x.numel() // max(1, x.shape[-1]), x.shape[-1], torch.get_num_threads()


def gelu(x: Tensor, offset: Tensor, out: Tensor) -> Tensor:
    """GELU(x + offset) into `out`, which may be `x`; contiguous tensors that are `usable`."""
    _library().gelu(x.data_ptr(), offset.data_ptr(), out.data_ptr(), *_rows(x))
    return out


def gelu_backward(x: Tensor, offset: Tensor, d_out: Tensor) -> Tensor:
    """The gradient of x under `gelu`, in place of `d_out`."""
    _library().gelu_backward(x.data_ptr(), offset.data_ptr(), d_out.data_ptr(), d_out.data_ptr(), *_rows(x))
    return d_out


class _GeluLinear(torch.autograd.Function):
    """GELU(x + offset) W^T + b; GELU is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, offset = x.contiguous(), offset.contiguous()
        ctx.save_for_backward(x, offset, weight, bias)
        return F.linear(gelu(x, offset, torch.empty_like(x)), weight, bias)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, weight, bias = given = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of these gradients are wanted
            wanted = [t for t, need in zip(given, ctx.needs_input_grad, strict=True) if need]
            out = F.linear(F.gelu(x + offset), weight, bias)
            found = iter(torch.autograd.grad(out, wanted, d_out, create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        rows = d_out.reshape(-1, d_out.shape[-1])
        d_x = d_offset = d_weight = d_bias = None
        if ctx.needs_input_grad[2]:
            d_weight = rows.t() @ gelu(x, offset, torch.empty_like(x)).view(-1, x.shape[-1])
        if ctx.needs_input_grad[3]:
            d_bias = rows.sum(0)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            d_x = gelu_backward(x, offset, (rows @ weight).view(x.shape))
            d_offset = d_x.view(-1, x.shape[-1]).sum(0)
        return d_x, d_offset, d_weight, d_bias
