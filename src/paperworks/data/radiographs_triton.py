# mypy: disable-error-code="no-untyped-def"
"""Line integrals along rays and their adjoint on a GPU (Triton): samples are read as they come, none is kept.

The counterpart of `radiographs.c`, on an unpadded volume: a program walks a block of rays side by side and reads the
eight voxels around each sample. The adjoint adds to the voxels by atomics, so its sums depend on their order.
Imported only where a CUDA tensor meets an installed triton; `paperworks.data.radiographs.drr` is what to call.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_RAYS = 128


@triton.jit
def _walk(walks_ptr, ray, inside, image, rays):
    """Where a block of rays begins, how it goes on, and for how many samples."""
    at = walks_ptr + (image * rays + ray) * 7
    x = tl.load(at, mask=inside, other=0.0)
    y = tl.load(at + 1, mask=inside, other=0.0)
    z = tl.load(at + 2, mask=inside, other=0.0)
    dx = tl.load(at + 3, mask=inside, other=0.0)
    dy = tl.load(at + 4, mask=inside, other=0.0)
    dz = tl.load(at + 5, mask=inside, other=0.0)
    n = tl.load(at + 6, mask=inside, other=0.0)
    return x, y, z, dx, dy, dz, n


@triton.jit
def _cell(p):
    """The voxel below a place, and how far it is from there to the next."""
    below = tl.floor(p)
    return below.to(tl.int32), p - below


@triton.jit
def _corner(corner: tl.constexpr, ix, iy, iz, fx, fy, fz, X, Y, Z):
    """One of the eight voxels around a place: its trilinear weight, where it lies, and whether it is in the volume."""
    cx = ix + corner // 4
    cy = iy + (corner // 2) % 2
    cz = iz + corner % 2
    wx = fx if corner // 4 else 1.0 - fx
    wy = fy if (corner // 2) % 2 else 1.0 - fy
    wz = fz if corner % 2 else 1.0 - fz
    there = (cx >= 0) & (cx < X) & (cy >= 0) & (cy < Y) & (cz >= 0) & (cz < Z)
    return wx * wy * wz, (cx * Y + cy) * Z + cz, there


@triton.jit
def _project_kernel(volume_ptr, walks_ptr, out_ptr, rays, X, Y, Z, steps, step, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ray < rays
    x, y, z, dx, dy, dz, n = _walk(walks_ptr, ray, inside, image, rays)
    from_ptr = volume_ptr + image * X * Y * Z
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for k in range(steps):
        here = inside & (k < n)
        ix, fx = _cell(x + k * dx)
        iy, fy = _cell(y + k * dy)
        iz, fz = _cell(z + k * dz)
        for corner in tl.static_range(8):
            weight, at, there = _corner(corner, ix, iy, iz, fx, fy, fz, X, Y, Z)
            total += weight * tl.load(from_ptr + at, mask=here & there, other=0.0)
    tl.store(out_ptr + image * rays + ray, total * step, mask=inside)


@triton.jit
def _spread_kernel(given_ptr, walks_ptr, volume_ptr, rays, X, Y, Z, steps, step, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ray < rays
    x, y, z, dx, dy, dz, n = _walk(walks_ptr, ray, inside, image, rays)
    to_ptr = volume_ptr + image * X * Y * Z
    given = tl.load(given_ptr + image * rays + ray, mask=inside, other=0.0) * step
    for k in range(steps):
        here = inside & (k < n)
        ix, fx = _cell(x + k * dx)
        iy, fy = _cell(y + k * dy)
        iz, fz = _cell(z + k * dz)
        for corner in tl.static_range(8):
            weight, at, there = _corner(corner, ix, iy, iz, fx, fy, fz, X, Y, Z)
            tl.atomic_add(to_ptr + at, given * weight, mask=here & there)


def project(volume: Tensor, walks: Tensor, steps: int, step: float) -> Tensor:
    """Integrals (B, rays) of a contiguous float32 volume (B, 1, X, Y, Z) along its rays.

    Args:
        volume: the volume.
        walks: (B, rays, 7), first place and step of each ray in voxels, and how many samples.
        steps: the most samples of a ray.
        step: length of a step.
    """
    batch, rays, _ = walks.shape
    out = torch.empty(batch, rays, dtype=torch.float32, device=volume.device)
    grid = (triton.cdiv(rays, _RAYS), batch)
    with _device(volume):
        _project_kernel[grid](volume, walks, out, rays, *volume.shape[2:], steps, step, BLOCK=_RAYS)
    return out


def spread_back(image: Tensor, size: Sequence[int], walks: Tensor, steps: int, step: float) -> Tensor:
    """The adjoint of `project`: (B, 1, h, w), contiguous, float32 -> (B, 1, *size)."""
    batch, rays, _ = walks.shape
    volume = torch.zeros(batch, 1, *size, dtype=torch.float32, device=image.device)
    grid = (triton.cdiv(rays, _RAYS), batch)
    with _device(image):
        _spread_kernel[grid](image, walks, volume, rays, *size, steps, step, BLOCK=_RAYS)
    return volume


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
