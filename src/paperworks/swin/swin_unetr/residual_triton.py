# mypy: disable-error-code="no-untyped-def"
"""Instance norm, sum and LeakyReLU of a residual block on a GPU: two passes forward, two backward (Triton).

The counterpart of `residual.c`, of maps (images, rows, width) with channels innermost, in any floating type; sums are
of float32. A map is read once for its moments, whose parts are added in a fixed order, so that they are the same in
every run, and once for the result; what is normalised is never written.
Imported only where a CUDA tensor meets an installed triton; `residual_cpu.normed_sum` is what to call.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, REPEATS = 64, 32, 16
"""Rows and channels of a tile, and tiles that one program adds up."""


@triton.jit
def _tile(block, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Places in an image, which of them exist, channels, and which of those do."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (channel < width)[None, :]
    return row.to(tl.int64)[:, None] * width + channel[None, :], inside, channel, channel < width


@triton.jit
def _moments_kernel(
    x_ptr, parts_ptr, rows, width, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr, REPEATS: tl.constexpr
):
    """Sums of x less the image's first row, and of their squares: parts[image, block, 0 or 1, channel]."""
    image = tl.program_id(2).to(tl.int64)
    base = x_ptr + image * rows * width
    one = tl.zeros((COLUMNS,), tl.float32)
    two = tl.zeros((COLUMNS,), tl.float32)
    at, inside, channel, real = _tile(0, rows, width, ROWS, COLUMNS)
    first = tl.load(base + channel, mask=real, other=0.0).to(tl.float32)
    for i in range(REPEATS):
        at, inside, channel, real = _tile(tl.program_id(0) * REPEATS + i, rows, width, ROWS, COLUMNS)
        y = tl.where(inside, tl.load(base + at, mask=inside, other=0.0).to(tl.float32) - first[None, :], 0.0)
        one += tl.sum(y, 0)
        two += tl.sum(y * y, 0)
    to = parts_ptr + (image * blocks + tl.program_id(0)) * 2 * width + channel
    tl.store(to, one, mask=real)
    tl.store(to + width, two, mask=real)


@triton.jit
def _residual_kernel(
    a_ptr, b_ptr, statistics_ptr, out_ptr, rows, width, all, slope,
    ADDED: tl.constexpr, NORMED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """statistics[4, image, channel]: mean and 1 / deviation of a, then of b."""
    image = tl.program_id(2).to(tl.int64)
    at, inside, channel, real = _tile(tl.program_id(0), rows, width, ROWS, COLUMNS)
    at += image * rows * width
    of = statistics_ptr + image * width + channel
    mean, inverse = tl.load(of, mask=real, other=0.0), tl.load(of + all, mask=real, other=0.0)
    z = (tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * inverse[None, :]
    if ADDED:
        b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if NORMED:
            mean, inverse = tl.load(of + 2 * all, mask=real, other=0.0), tl.load(of + 3 * all, mask=real, other=0.0)
            b = (b - mean[None, :]) * inverse[None, :]
        z += b
    tl.store(out_ptr + at, tl.where(z > 0, z, slope * z).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _slopes(out_ptr, g_ptr, at, inside, slope):
    """The gradient before LeakyReLU."""
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(tl.load(out_ptr + at, mask=inside, other=0.0).to(tl.float32) > 0, g, slope * g)


@triton.jit
def _normal(x_ptr, of, step, at, inside, real):
    """x normalised, and 1 / deviation."""
    mean, inverse = tl.load(of, mask=real, other=0.0), tl.load(of + step, mask=real, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, (x - mean[None, :]) * inverse[None, :], 0.0), inverse


@triton.jit
def _sums_kernel(
    a_ptr, b_ptr, statistics_ptr, out_ptr, g_ptr, parts_ptr, rows, width, all, blocks, slope,
    NORMED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, REPEATS: tl.constexpr,
):  # fmt: skip
    """Sums of dz, dz norm(a) and dz norm(b): parts[image, block, 0 to 2, channel]."""
    image = tl.program_id(2).to(tl.int64)
    one = tl.zeros((COLUMNS,), tl.float32)
    two = tl.zeros((COLUMNS,), tl.float32)
    three = tl.zeros((COLUMNS,), tl.float32)
    at, inside, channel, real = _tile(0, rows, width, ROWS, COLUMNS)
    of = statistics_ptr + image * width + channel
    for i in range(REPEATS):
        at, inside, channel, real = _tile(tl.program_id(0) * REPEATS + i, rows, width, ROWS, COLUMNS)
        at += image * rows * width
        dz = _slopes(out_ptr, g_ptr, at, inside, slope)
        normal, _ = _normal(a_ptr, of, all, at, inside, real)
        one += tl.sum(dz, 0)
        two += tl.sum(dz * normal, 0)
        if NORMED:
            normal, _ = _normal(b_ptr, of + 2 * all, all, at, inside, real)
            three += tl.sum(dz * normal, 0)
    to = parts_ptr + (image * blocks + tl.program_id(0)) * 3 * width + channel
    tl.store(to, one, mask=real)
    tl.store(to + width, two, mask=real)
    tl.store(to + 2 * width, three, mask=real)


@triton.jit
def _backward_kernel(
    a_ptr, b_ptr, statistics_ptr, out_ptr, g_ptr, means_ptr, da_ptr, db_ptr, rows, width, all, slope,
    ADDED: tl.constexpr, NORMED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """means[3, image, channel]: of dz, dz norm(a) and dz norm(b)."""
    image = tl.program_id(2).to(tl.int64)
    at, inside, channel, real = _tile(tl.program_id(0), rows, width, ROWS, COLUMNS)
    at += image * rows * width
    of, mean = statistics_ptr + image * width + channel, means_ptr + image * width + channel
    dz = _slopes(out_ptr, g_ptr, at, inside, slope)
    level = tl.load(mean, mask=real, other=0.0)
    normal, inverse = _normal(a_ptr, of, all, at, inside, real)
    da = inverse[None, :] * (dz - level[None, :] - normal * tl.load(mean + all, mask=real, other=0.0)[None, :])
    tl.store(da_ptr + at, da.to(da_ptr.dtype.element_ty), mask=inside)
    if ADDED:
        db = dz
        if NORMED:
            normal, inverse = _normal(b_ptr, of + 2 * all, all, at, inside, real)
            share = tl.load(mean + 2 * all, mask=real, other=0.0)
            db = inverse[None, :] * (dz - level[None, :] - normal * share[None, :])
        tl.store(db_ptr + at, db.to(db_ptr.dtype.element_ty), mask=inside)


def _grid(x: Tensor, repeats: int) -> tuple[int, int, int]:
    rows, width = x[0, 0].numel(), x.shape[1]
    return triton.cdiv(rows, ROWS * repeats), triton.cdiv(width, COLUMNS), x.shape[0]


def forward(a: Tensor, b: Tensor | None, normed: bool, eps: float, slope: float) -> tuple[Tensor, Tensor]:
    """LeakyReLU(norm(a) [+ b or norm(b)]) and the statistics (4, images, channels) float32.

    Args:
        a, b: (images, channels, *S), channels last in memory.
        normed: whether `b` is normalised too.
    """
    images, width, rows = a.shape[0], a.shape[1], a[0, 0].numel()
    statistics = torch.zeros(4, images, width, device=a.device)
    for i, map in enumerate((a, b) if normed and b is not None else (a,)):
        grid = _grid(map, REPEATS)
        parts = torch.empty(images, grid[0], 2, width, device=a.device)
        _moments_kernel[grid](map, parts, rows, width, grid[0], ROWS=ROWS, COLUMNS=COLUMNS, REPEATS=REPEATS)
        one, two = (parts.sum(1, dtype=torch.float64) / rows).unbind(1)
        first = map.movedim(1, -1).flatten(1, -2)[:, 0]
        statistics[2 * i] = first.double() + one
        statistics[2 * i + 1] = torch.rsqrt((two - one.square()).clamp(min=0) + eps)
    out = torch.empty_like(a, dtype=a.dtype if b is None else torch.promote_types(a.dtype, b.dtype))
    _residual_kernel[_grid(a, 1)](
        a, a if b is None else b, statistics, out, rows, width, images * width, slope,
        ADDED=b is not None, NORMED=normed, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return out, statistics


def backward(
    a: Tensor,
    b: Tensor | None,
    statistics: Tensor,
    out: Tensor,
    g: Tensor,
    slope: float,
    added: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients for a and, where one was added (its type is `added`), for b, which is given if it was normalised."""
    images, width, rows = a.shape[0], a.shape[1], a[0, 0].numel()
    grid, second = _grid(a, REPEATS), a if b is None else b
    parts = torch.empty(images, grid[0], 3, width, device=a.device)
    _sums_kernel[grid](
        a, second, statistics, out, g, parts, rows, width, images * width, grid[0], slope,
        NORMED=b is not None, ROWS=ROWS, COLUMNS=COLUMNS, REPEATS=REPEATS,
    )  # fmt: skip
    means = (parts.sum(1, dtype=torch.float64) / rows).float().transpose(0, 1).contiguous()
    d_a = torch.empty_like(a)
    d_b = None if added is None else torch.empty_like(a, dtype=added)
    _backward_kernel[_grid(a, 1)](
        a, second, statistics, out, g, means, d_a, d_a if d_b is None else d_b, rows, width, images * width, slope,
        ADDED=added is not None, NORMED=b is not None, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return d_a, d_b
