"""The two passes with their gradients in one go: a loop on the CPU (`passes.c`, float32), a kernel on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperworks import native

__all__ = ["Passes", "fused_passes"]

_POINTERS, _SIZES = [c_void_p] * 5, [c_int64] * 5


@dataclass(frozen=True)
class Passes:
    """What the two passes need beside q, k and v.

    Attributes:
        rotary: cos and sin of the tokens' angles, (h, w, 1, D / 2) each, or None.
        scale: of the keys.
        rows, columns: what is added to the scores, and factors of the sigmoid or None for softmax: (H, L, L), or
            (nW, lines or 1, H, L, L).
        eager: the same of (q, k, v) in tensor operations.
    """

    rotary: tuple[Tensor, Tensor] | None
    scale: float
    rows: tuple[Tensor, Tensor | None]
    columns: tuple[Tensor, Tensor | None]
    eager: Callable[[Tensor, Tensor, Tensor], Tensor]


def _library() -> CDLL | None:
    before = [*_POINTERS, c_float, *[c_void_p] * 4, *[c_int64] * 3, c_void_p, c_int64]
    functions: dict[str, list[Any]] = {
        "passes_forward": [*before, c_void_p, *_SIZES, c_int],
        "passes_backward": [*before, *[c_void_p] * 4, *_SIZES, c_int],
    }
    return native.load(Path(__file__).with_name("passes.c"), functions)


def fused_passes(q: Tensor, k: Tensor, v: Tensor, passes: Passes) -> Tensor | None:
    """v after both passes, (B, h, w, H, D), or None where neither loop nor kernel can run: tensor operations then do.

    Args:
        q, k, v: (B, h, w, H, D), neither turned nor scaled.
        passes: tables.
    """
    if q.numel() == 0 or not q.device == k.device == v.device or not q.dtype == k.dtype == v.dtype:
        return None
    if native.must_be_traceable(q, k, v):
        return None
    found: Tensor | None = None
    if q.is_cuda and find_spec("triton") is not None:
        from paperworks.swin.gated_swinrmt import passes_triton

        found = _Fused.apply(q, k, v, passes) if passes_triton.takes(q) else None
    elif q.device.type == "cpu" and q.dtype == torch.float32 and _library() is not None:
        found = _Fused.apply(q, k, v, passes)
    return found


def _arguments(
    q: Tensor, k: Tensor, v: Tensor, passes: Passes, backward: bool
) -> tuple[list[Any], list[Any], list[Tensor | None]]:
    """Arguments up to the room, those from B on, and the tensors whose memory they point to."""
    b, h, w, heads, width = q.shape
    threads, tokens, longer = torch.get_num_threads(), h * w, max(h, w)
    if backward:
        each = 9 * tokens * width + 4 * tokens * longer + 2 * tokens + longer
    else:
        each = 4 * tokens * width + tokens * longer
    room = q.new_empty(threads * each)
    cos, sin = passes.rotary or (None, None)
    # masks of the two passes are always given together, so both have the same number of windows
    windows, row_lines = passes.rows[0].shape[:2] if passes.rows[0].dim() == 5 else (1, 1)
    column_lines = passes.columns[0].shape[1] if passes.columns[0].dim() == 5 else 1
    held = [t if t is None else t.contiguous() for t in (q, k, v, cos, sin, *passes.rows, *passes.columns)]
    pointers = [None if t is None else t.data_ptr() for t in held]
    first = [*pointers[:5], passes.scale, *pointers[5:], windows, row_lines, column_lines, room.data_ptr(), each]
    return first, [b, h, w, heads, width, threads], [*held, room]


def _run(q: Tensor, k: Tensor, v: Tensor, passes: Passes, g: Tensor | None = None) -> tuple[Tensor, ...]:
    """(v after both passes,), or with the gradient of that (dq, dk, dv)."""
    if q.is_cuda:
        from paperworks.swin.gated_swinrmt import passes_triton

        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        g = None if g is None else g.contiguous()
        return passes_triton.run(q, k, v, passes.rotary, passes.scale, passes.rows, passes.columns, g)
    library = _library()
    assert library is not None
    made = tuple(torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(1 if g is None else 3))
    pointers = [t.data_ptr() for t in made]
    first, last, held = _arguments(q, k, v, passes, g is not None)
    if g is None:
        library.passes_forward(*first, *pointers, *last)
    else:
        g = g.contiguous()
        library.passes_backward(*first, g.data_ptr(), *pointers, *last)
    del held
    return made


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, passes: Passes) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.passes = passes
        return _run(q, k, v, passes)[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        if torch.is_grad_enabled() or native.must_be_traceable(g):
            with torch.enable_grad():
                inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in (q, k, v)]
                found = torch.autograd.grad(ctx.passes.eager(*inputs), inputs, g, create_graph=True)
        else:
            found = _run(q, k, v, ctx.passes, g)
        return found[0], found[1], found[2], None
