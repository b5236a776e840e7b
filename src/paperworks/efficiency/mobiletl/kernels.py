"""The fused passes of `activation`: the C loops beside this file on CPU, Triton on CUDA, and when they may run."""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from paperworks import native

__all__ = ["BACKWARD_RULES", "KINDS", "Kernels", "Layout", "kernels_of", "layout_of", "may_fuse", "rule_of"]

KINDS = ("relu", "relu6", "hardswish", "silu")
BACKWARD_RULES = ("sign", "exact", "two_bit")

_PIECE, _ROWS = 4096, 64  # as in mobiletl.c: they decide the room that partial sums take
_SHARE = 1 << 15  # elements that are worth a thread
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


class Layout(NamedTuple):
    """How memory is laid out: permuting x by `order` gives contiguous (outer, channels, inner)."""

    order: tuple[int, ...]
    outer: int
    channels: int
    inner: int


class Kernels(NamedTuple):
    """forward(x, a, b, layout, kind, backward) -> (y, bits); backward(g, bits, a, layout, slopes) -> (dx, db)."""

    forward: Callable[[Tensor, Tensor | None, Tensor | None, Layout, str, str], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor | None, Layout, tuple[float, ...]], tuple[Tensor, Tensor | None]]


def may_fuse(x: Tensor) -> bool:
    """Whether a fused kernel can take `x`; else plain tensor operations have to do the work."""
    return (
        not native.must_be_traceable(x)
        and x.numel() > 0
        and x.permute(_order(x)).is_contiguous()
        and _kernels(x.device.type, x.dtype) is not None
    )


def kernels_of(x: Tensor) -> Kernels:
    """The kernels for a tensor of a device and dtype that `may_fuse`."""
    found = _kernels(x.device.type, x.dtype)
    assert found is not None
    return found


def rule_of(kind: str, backward: str) -> int:
    """What is kept: 0 one bit z > 0, 1 one bit 0 < z < 6, 2 two bits."""
    if kind in ("relu", "relu6"):
        return int(kind == "relu6" and backward != "sign")
    return 2 * (backward == "two_bit")


def layout_of(x: Tensor, a: Tensor | None) -> Layout:
    """The layout of x, whose memory has no gaps, with channels in dimension 1; without `a` one channel is all."""
    order = _order(x)
    if a is None:
        return Layout(order, 1, 1, x.numel())
    sizes = [x.shape[i] for i in order]
    at = order.index(1)
    return Layout(order, math.prod(sizes[:at]), sizes[at], math.prod(sizes[at + 1 :]))


def _order(x: Tensor) -> tuple[int, ...]:
    """Dimensions from the outermost in memory to the innermost."""
    dims = tuple(range(x.dim()))
    return dims if x.is_contiguous() else tuple(sorted(dims, key=x.stride, reverse=True))


def back_in_order(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """The inverse of `t.permute(order)`."""
    return t.permute(sorted(range(len(order)), key=order.__getitem__))


def one_number(g: Tensor) -> bool:
    """Whether `g` is one number expanded, as the gradient of a sum or a mean is."""
    return not any(g.stride())


@cache
def _kernels(device: str, dtype: torch.dtype) -> Kernels | None:
    if device == "cuda" and dtype in (torch.float32, torch.float16, torch.bfloat16):
        if importlib.util.find_spec("triton") is None:
            return None
        from paperworks.efficiency.mobiletl.mobiletl_triton import backward as cuda_backward
        from paperworks.efficiency.mobiletl.mobiletl_triton import forward as cuda_forward

        return Kernels(cuda_forward, cuda_backward)
    if device != "cpu" or dtype not in _SUFFIXES:
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    types = {
        "forward": [pointer] * 6 + [size] * 3 + [number] * 3,
        "backward": [pointer] * 8 + [size] * 3 + [number] * 3,
    }
    functions = {f"mobiletl_{way}_{suffix}": types[way] for way in types for suffix in _SUFFIXES.values()}
    library = native.load(Path(__file__).with_name("mobiletl.c"), functions)
    if library is None:
        return None
    run = {way: getattr(library, f"mobiletl_{way}_{_SUFFIXES[dtype]}") for way in types}

    def forward(
        x: Tensor, a: Tensor | None, b: Tensor | None, layout: Layout, kind: str, backward: str
    ) -> tuple[Tensor, Tensor]:
        rule, size = rule_of(kind, backward), -(-x.numel() // 8)
        y = torch.empty_like(x)
        bits = torch.empty((1 + rule // 2) * size, dtype=torch.uint8)
        scale, shift = _channel_values(a, 1.0), _channel_values(b, 0.0)
        pointers = [t.data_ptr() for t in (x, scale, shift, y, bits)]
        run["forward"](*pointers, bits.data_ptr() + size, *layout[1:], KINDS.index(kind), rule, _threads(x))
        return y, bits

    def backward(
        g: Tensor, bits: Tensor, a: Tensor | None, layout: Layout, slopes: tuple[float, ...]
    ) -> tuple[Tensor, Tensor | None]:
        order, outer, channels, inner = layout
        uniform = one_number(g)
        g = g.permute(order)
        dx = torch.empty(g.shape, dtype=g.dtype)
        g = g if uniform else g.contiguous()
        blocks = -(-outer // _ROWS) if inner == 1 else outer * -(-inner // _PIECE)
        room = torch.empty((blocks + 1) * channels, dtype=torch.float32)
        db, partial = room[:channels], room[channels:]
        scale, table = _channel_values(a, 1.0), torch.tensor(slopes, dtype=torch.float32, device="cpu")
        second = bits.data_ptr() + bits.numel() // 2
        pointers = [g.data_ptr(), scale.data_ptr(), bits.data_ptr(), second]
        pointers += [t.data_ptr() for t in (table, dx, partial, db)]
        run["backward"](*pointers, outer, channels, inner, 2 * (len(slopes) == 4), uniform, _threads(g))
        return back_in_order(dx, order), None if a is None else db

    return Kernels(forward, backward)


def _channel_values(values: Tensor | None, default: float) -> Tensor:
    if values is None:
        return torch.full((1,), default, dtype=torch.float32, device="cpu")
    return values.detach().to(torch.float32).contiguous()


def _threads(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() // _SHARE))
