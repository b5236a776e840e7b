"""The two passes with their gradients in one go: a loop on the CPU (`passes.c`, float32), a kernel on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL, POINTER, Structure, byref, c_double, c_int64, c_void_p
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks import native
from paperworks.swin.gated_swinrmt.decay import kept
from paperworks.swin.gated_swinrmt.masks import AxisMasks

__all__ = ["Passes", "fused_passes"]

Tables = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Passes:
    """What the two passes need beside q, k and v.

    Attributes:
        rotary: cos and sin of the tokens' angles, (h, w, 1, D / 2) each, or None.
        scale: of the keys.
        rows, columns: what is added to the scores, and factors of the sigmoid or None for softmax: (H, L, L).
        masks: of the windows, or None.
        masked: `rows` and `columns` with the masks in them, (H, L, L) or (nW, lines or 1, H, L, L).
    """

    rotary: tuple[Tensor, Tensor] | None
    scale: float
    rows: Tables
    columns: Tables
    masks: AxisMasks | None
    masked: Callable[[], tuple[Tables, Tables]]


class _Arguments(Structure):
    _fields_ = (
        [(name, c_void_p) for name in ("q", "k", "v", "gate", "q_offset", "k_offset", "v_offset", "gate_offset")]
        + [(name, c_void_p) for name in ("taps", "taps_offset", "cosine", "sine")]
        + [(f"{axis}_{name}", c_void_p) for axis in ("row", "column") for name in ("add", "factor", "mask")]
        + [("room", c_void_p)]
        + [(name, c_int64) for name in ("each", "step", "row_lines", "column_lines", "windows")]
        + [(name, c_int64) for name in ("of_values", "chunks", "threads", "B", "h", "w", "H", "D", "K")]
        + [("scale", c_double)]
    )


def library() -> CDLL | None:
    """The compiled loops."""
    functions: dict[str, list[Any]] = {
        "passes_forward": [POINTER(_Arguments), c_void_p],
        "passes_backward": [POINTER(_Arguments), *[c_void_p] * 7],
    }
    return native.load(Path(__file__).with_name("passes.c"), functions)


def rounded(size: int) -> int:
    """The next multiple of 8."""
    return -(-size // 8) * 8


def filled(x: Tensor, value: float = 0.0) -> Tensor:
    """The last axis of x filled up to a multiple of 8, contiguous."""
    missing = rounded(x.shape[-1]) - x.shape[-1]
    return F.pad(x, (0, missing), value=value) if missing else x.contiguous()


@kept
def _angles(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of both channels of each pair, (h w, D): the sines with the signs of (e, o) -> (-o, e)."""
    return (
        filled(cos.flatten(0, 2).repeat_interleave(2, -1)),
        filled(torch.stack((-sin, sin), -1).flatten(-2).flatten(0, 2)),
    )


def _added(allowed: Tensor, scores: Tensor | None, alone: bool) -> Tensor:
    """(nW, lines or 1, L, P): what a mask adds to the scores. A token that may attend to none attends to itself where
    `alone`."""
    added = allowed.new_zeros((), dtype=torch.float32) if scores is None else scores.float()
    found = torch.where(allowed, added, -torch.inf)
    if alone:
        found.diagonal(dim1=-2, dim2=-1).masked_fill_(~allowed.any(-1), 0)
    return filled(found, -torch.inf)


@dataclass(frozen=True)
class Given:
    """The maps and weights that the loops read, all contiguous but for `step` between tokens.

    Attributes:
        maps: q, k, v and, where there is one, the gate: (B, h, w, H, D) each, neither turned nor scaled.
        offsets: (C,) each, added to the maps; or none.
        taps, taps_offset: (C, 1, K, K) and (C,) of the depthwise convolution of the values, or None.
        of_values: the gate is one of the values, by SiLU; else of the result.
    """

    maps: tuple[Tensor, ...]
    offsets: tuple[Tensor, ...] = ()
    taps: Tensor | None = None
    taps_offset: Tensor | None = None
    of_values: bool = False

    def arguments(self, passes: Passes, chunks: int = 1) -> tuple[_Arguments, list[Tensor]]:
        """The arguments of the loops, and the tensors that their pointers need alive."""
        q, masks = self.maps[0], passes.masks
        b, h, w, heads, width = q.shape
        n, longer, threads = h * w, rounded(max(h, w)), torch.get_num_threads()
        each = 12 * n * rounded(width) + 4 * n * longer + 2 * n + longer * longer
        tables: dict[str, Tensor] = dict(zip(("q", "k", "v", "gate"), self.maps, strict=False))
        for name, offset in zip(("q", "k", "v", "gate"), self.offsets, strict=False):
            tables[f"{name}_offset"] = filled(offset.view(heads, width))
        if self.taps is not None and self.taps_offset is not None:
            tables["taps"] = filled(self.taps.flatten(1).t().reshape(-1, heads, width))
            tables["taps_offset"] = filled(self.taps_offset.view(heads, width))
        if passes.rotary is not None:
            tables["cosine"], tables["sine"] = _angles(*passes.rotary)
        for axis, (add, factor) in (("row", passes.rows), ("column", passes.columns)):
            tables[f"{axis}_add"] = filled(add, -torch.inf)
            if factor is not None:
                tables[f"{axis}_factor"] = filled(factor)
        if masks is not None:
            soft = passes.rows[1] is None
            tables["row_mask"] = _added(masks.rows, masks.row_scores, soft)
            tables["column_mask"] = _added(masks.columns, masks.column_scores, soft)
        tables["room"] = q.new_empty(threads * each)
        found = _Arguments(
            each=each, step=q.stride(2), of_values=self.of_values, chunks=chunks, threads=threads, scale=passes.scale,
            windows=1 if masks is None else masks.windows,
            row_lines=1 if masks is None else masks.rows.shape[1],
            column_lines=1 if masks is None else masks.columns.shape[1],
            B=b, h=h, w=w, H=heads, D=width, K=0 if self.taps is None else self.taps.shape[-1],
            **{name: t.data_ptr() for name, t in tables.items()},
        )  # fmt: skip
        return found, list(tables.values())


def forward(given: Given, passes: Passes) -> Tensor:
    """The result of the passes, with the convolution and the gates that are given: (B, h, w, H, D)."""
    out = given.maps[0].new_empty(given.maps[0].shape)
    arguments, held = given.arguments(passes)
    loops = library()
    assert loops is not None
    loops.passes_forward(byref(arguments), out.data_ptr())
    del held
    return out


def backward(given: Given, passes: Passes, out: Tensor, g: Tensor, into: tuple[Tensor, ...]) -> Tensor:
    """Writes the gradients of `given.maps` into maps of the same strides. Returns those of the offsets of q, k, v and
    gate, of the taps' offset, and of the taps: (H, 5 + K K, D).

    Args:
        out: what `forward` gave.
        g: its gradient, contiguous.
    """
    b, _, _, heads, width = given.maps[0].shape
    side = 0 if given.taps is None else given.taps.shape[-1]
    sums = g.new_empty(min(b, 16), heads, 5 + side * side, rounded(width))
    arguments, held = given.arguments(passes, len(sums))
    loops = library()
    assert loops is not None
    d_maps = [t.data_ptr() for t in into] + [None] * (4 - len(into))
    loops.passes_backward(byref(arguments), out.data_ptr(), g.data_ptr(), *d_maps, sums.data_ptr())
    del held
    return sums.sum(0)[..., :width]


def fused_passes(
    q: Tensor, k: Tensor, v: Tensor, passes: Passes, eager: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor | None:
    """v after both passes, (B, h, w, H, D), or None where neither loop nor kernel can run: tensor operations then do.

    Args:
        q, k, v: (B, h, w, H, D), neither turned nor scaled.
        passes: tables.
        eager: the same of (q, k, v) in tensor operations.
    """
    if q.numel() == 0 or not q.device == k.device == v.device or not q.dtype == k.dtype == v.dtype:
        return None
    if native.must_be_traceable(q, k, v):
        return None
    found: Tensor | None = None
    if q.is_cuda and find_spec("triton") is not None:
        from paperworks.swin.gated_swinrmt import passes_triton

        found = _Fused.apply(q, k, v, passes, eager) if passes_triton.takes(q) else None
    elif q.device.type == "cpu" and q.dtype == torch.float32 and library() is not None:
        found = _Fused.apply(q, k, v, passes, eager)
    return found


def _run(q: Tensor, k: Tensor, v: Tensor, passes: Passes) -> Tensor:
    if not q.is_cuda:
        return forward(Given((q, k, v)), passes)
    from paperworks.swin.gated_swinrmt import passes_triton

    return passes_triton.run(q, k, v, passes.rotary, passes.scale, *passes.masked())[0]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, passes: Passes, eager: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = _run(q, k, v, passes)
        ctx.save_for_backward(q, k, v, out)
        ctx.passes, ctx.eager = passes, eager
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        if torch.is_grad_enabled() or native.must_be_traceable(g):
            with torch.enable_grad():
                inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in (q, k, v)]
                return (*torch.autograd.grad(ctx.eager(*inputs), inputs, g, create_graph=True), None, None)
        g = g.contiguous()
        if q.is_cuda:
            from paperworks.swin.gated_swinrmt import passes_triton

            rows, columns = ctx.passes.masked()
            found = passes_triton.run(q, k, v, ctx.passes.rotary, ctx.passes.scale, rows, columns, g)
            return (*found, None, None)
        made = tuple(torch.empty_like(q) for _ in range(3))
        backward(Given((q, k, v)), ctx.passes, out, g, made)
        return (*made, None, None)
