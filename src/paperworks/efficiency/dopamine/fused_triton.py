# mypy: disable-error-code="no-untyped-def"
"""Activation and gate on a GPU: one pass forward, one backward with the sums for tau and gain (Triton).

The counterpart of `gate.c`: memory is (outer, channels, inner), tau and gain are (rows, channels) float32, and row r
holds for the r-th of `rows` equal runs of the outer index. d tau and d gain are summed in two stages without atomics,
each program its own block and then the blocks in a fixed order, so they are the same in every run. Imported only where
a CUDA tensor meets an installed triton; `paperworks.efficiency.dopamine.fused` is what calls it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paperworks.efficiency.dopamine.fused import KINDS

_BLOCK = 1024
_ROWS, _COLUMNS = 32, 64  # the block of a backward program: positions of one run, channels


@triton.jit
def _logistic(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _activation(z, given, KIND: tl.constexpr):
    """phi(z) and its derivative."""
    if KIND == 1:
        phi, slope = tl.where(z < 0.0, 0.0, z), tl.where(z > 0.0, 1.0, 0.0)
    elif KIND == 2:
        c = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        bell = tl.exp(-0.5 * z * z)
        phi, slope = z * c, c + tl.where(bell == 0.0, 0.0, z * bell * 0.3989422804014327)
    elif KIND == 3:
        near = tl.where(z < -20.0, -20.0, tl.where(z > 20.0, 20.0, z))
        c = _logistic(1.5957691216057308 * near * (1.0 + 0.044715 * near * near))
        phi, slope = z * c, c + near * c * (1.0 - c) * 1.5957691216057308 * (1.0 + 0.134145 * near * near)
    elif KIND == 4:
        c = _logistic(z)
        phi, slope = z * c, c + z * c * (1.0 - c)
    else:
        phi, slope = given, z * 0.0
    return phi, slope


@triton.jit
def _gate(z, tau, s, HARD: tl.constexpr):
    """g and its derivative."""
    if HARD:
        g = tl.where(z > tau, 1.0, 0.0)
        steep = z * 0.0
    else:
        g = _logistic(s * (z - tau))
        steep = s * g * (1.0 - g)
    return g, steep


@triton.jit
def _forward_kernel(
    z_ptr, phi_ptr, tau_ptr, gain_ptr, y_ptr, n, run, channels, inner, s,
    KIND: tl.constexpr, HARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    given = z
    if KIND == 0:
        given = tl.load(phi_ptr + at, mask=inside, other=0.0).to(tl.float32)
    line = at // inner
    unit = (line // channels) // run * channels + line % channels
    tau = tl.load(tau_ptr + unit, mask=inside, other=0.0)
    gain = tl.load(gain_ptr + unit, mask=inside, other=0.0)
    phi, _ = _activation(z, given, KIND)
    g, _ = _gate(z, tau, s, HARD)
    tl.store(y_ptr + at, (gain * phi * g).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    z_ptr, phi_ptr, dy_ptr, tau_ptr, gain_ptr, dz_ptr, dphi_ptr, partial_ptr,
    positions, channels, inner, blocks, columns, s,
    KIND: tl.constexpr, HARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One block of positions of one run and of neighbouring channels; its sums go to partial[:, row, block, channel].

    `positions` = outer indices of a run times inner: position p of channel c lies at (p // inner, c, p % inner).
    """
    program = tl.program_id(0).to(tl.int64)
    row, rest = program // (blocks * columns), program % (blocks * columns)
    block, column = rest // columns, rest % columns
    p = block * ROWS + tl.arange(0, ROWS)
    c = column * COLUMNS + tl.arange(0, COLUMNS)
    here = c < channels
    inside = (p < positions)[:, None] & here[None, :]
    start = row * positions * channels
    at = start + ((p // inner)[:, None] * channels + c[None, :]) * inner + (p % inner)[:, None]
    z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    given = z
    if KIND == 0:
        given = tl.load(phi_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tau = tl.load(tau_ptr + row * channels + c, mask=here, other=0.0)[None, :]
    gain = tl.load(gain_ptr + row * channels + c, mask=here, other=0.0)[None, :]
    phi, slope = _activation(z, given, KIND)
    g, steep = _gate(z, tau, s, HARD)
    through = dy * gain * phi * steep
    tl.store(dz_ptr + at, (dy * gain * slope * g + through).to(dz_ptr.dtype.element_ty), mask=inside)
    if KIND == 0:
        tl.store(dphi_ptr + at, (dy * gain * g).to(dphi_ptr.dtype.element_ty), mask=inside)
    to = partial_ptr + (row * blocks + block) * channels + c
    size = (tl.num_programs(0) // (blocks * columns)).to(tl.int64) * blocks * channels
    tl.store(to, -tl.sum(tl.where(inside, through, 0.0), axis=0), mask=here)
    tl.store(to + size, tl.sum(tl.where(inside, dy * phi * g, 0.0), axis=0), mask=here)


def forward(z: Tensor, phi: Tensor | None, tau: Tensor, gain: Tensor, layout: Any) -> Tensor:
    """gain phi(z) g(z).

    Args:
        z, phi: contiguous, outer * channels * inner elements, float32, float16 or bfloat16; `phi` for kind "given".
        tau, gain: (rows, channels) float32.
        layout: rows, outer, channels, inner, sharpness, hard and kind as attributes.
    """
    y, n = torch.empty_like(z), z.numel()
    run = layout.outer // layout.rows
    with _device(z):
        _forward_kernel[(triton.cdiv(n, _BLOCK),)](
            z, z if phi is None else phi, tau, gain, y, n, run, layout.channels, layout.inner, layout.sharpness,
            KIND=KINDS[layout.kind], HARD=layout.hard, BLOCK=_BLOCK,
        )  # fmt: skip
    return y


def backward(
    z: Tensor, phi: Tensor | None, dy: Tensor, tau: Tensor, gain: Tensor, layout: Any
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of `forward` for z, phi (None where it is not given), tau and gain, given that of its output."""
    dz = torch.empty_like(z)
    dphi = None if phi is None else torch.empty_like(z)
    positions = layout.outer // layout.rows * layout.inner
    blocks, columns = triton.cdiv(positions, _ROWS), triton.cdiv(layout.channels, _COLUMNS)
    partial = torch.empty(2, layout.rows, blocks, layout.channels, dtype=torch.float32, device=z.device)
    with _device(z):
        _backward_kernel[(layout.rows * blocks * columns,)](
            z, z if phi is None else phi, dy, tau, gain, dz, dz if dphi is None else dphi, partial,
            positions, layout.channels, layout.inner, blocks, columns, layout.sharpness,
            KIND=KINDS[layout.kind], HARD=layout.hard, ROWS=_ROWS, COLUMNS=_COLUMNS,
        )  # fmt: skip
    dtau, dgain = partial.sum(2, dtype=torch.float64).float()
    return dz, dphi, dtau, dgain


def _device(z: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()
