"""X-rays of a volume by a cone of rays: line integrals, differentiable in the volume, and pictures made from them.

A point source and a flat detector turn about the z axis, which runs through the middle of the volume:

    r(u, v) = sum_k V(s + t_k d) dt,     d = (p(u, v) - s) / |p(u, v) - s|,     t_k = t_0 + (k + 1/2) dt

with the source s, the pixel p, t_0 where the ray enters the sphere around the volume, and V read by trilinear
interpolation, zero outside. It is the projection that Swin-X2S (arXiv 2501.05961) makes its X-rays with.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks import native

__all__ = ["biplanar_pair", "drr", "to_radiograph"]

_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_TYPES = [_POINTER] * 5 + [_REAL] * 2 + [_COUNT] * 4
_NAMES = {torch.float32: "f32", torch.float64: "f64"}
_FUNCTIONS = {f"{what}_{name}": _TYPES for what in ("project", "spread_back") for name in _NAMES.values()}
_RAYS = 4096
"""Rays at a time on a CPU where the loops do not run."""


def _library() -> Any:
    return native.load(Path(__file__).with_name("radiographs.c"), _FUNCTIONS)


class _Cone(NamedTuple):
    """Where the rays run, in mm; views (B, 12): source, middle of the detector, and a pixel's way on each axis."""

    views: Tensor
    spacing: tuple[float, float, float]
    size: tuple[int, int, int]
    pixels: tuple[int, int]
    step: float

    @property
    def radius(self) -> float:
        """Of the sphere around all voxels with a value, interpolation included."""
        return math.hypot(*(0.5 * (n + 1) * s for n, s in zip(self.size, self.spacing, strict=True)))


def _views(angles: Tensor, pixel_size: tuple[float, float], to_iso: float, to_detector: float) -> Tensor:
    turn = torch.deg2rad(angles)
    c, s, zero, one = turn.cos(), turn.sin(), torch.zeros_like(turn), torch.ones_like(turn)
    source, middle = to_iso * torch.stack([s, -c, zero], -1), (to_detector - to_iso) * torch.stack([-s, c, zero], -1)
    across, up = pixel_size[0] * torch.stack([c, s, zero], -1), pixel_size[1] * torch.stack([zero, zero, one], -1)
    return torch.cat([source, middle, across, up], -1)


def drr(
    volume: Tensor,
    spacing: Sequence[float],
    angle_deg: float | Tensor,
    *,
    detector_shape: Sequence[int],
    pixel_size: float | Sequence[float],
    source_to_iso: float = 1800.0,
    source_to_detector: float = 2000.0,
    step: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Line integrals of a volume from the source to each pixel of the detector: a digitally reconstructed radiograph.

    At 0 degrees the source is at (0, -source_to_iso, 0) and the detector's axes are x and z; a positive angle turns
    both counter-clockwise seen from +z, so that at 90 degrees the source is at +x and the axes are y and z. The middle
    of the volume is the origin: voxel i lies at (i - (n - 1) / 2) spacing, pixel i at (i - (h - 1) / 2) pixel_size.
    Linear in the volume, with derivatives of any order in it, and of the first in an angle given as a tensor. In loops
    of our own on a CPU, in Triton kernels on a GPU, else by `grid_sample`.

    Args:
        volume: (B, 1, X, Y, Z) attenuation, floating point.
        spacing: of the voxels on the three axes, mm.
        angle_deg: a number, or a tensor (B,); of one volume any number of views.
        detector_shape: pixels on both axes.
        pixel_size: mm, one number or one an axis.
        source_to_iso, source_to_detector: distances from the source to the origin and to the detector, mm.
        step: between two samples of a ray, mm; half of the smallest spacing if None.
        chunk: rays at a time by `grid_sample`; by default all on a GPU.

    Returns:
        (B, 1, h, w), in units of the volume times mm.

    Raises:
        ValueError: shapes that do not go together, an empty batch, sizes that are not positive, or a detector that is
            not behind the origin.
        TypeError: a volume that is not floating point.
    """
    cone = _cone(volume, spacing, angle_deg, detector_shape, pixel_size, source_to_iso, source_to_detector, step)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: got {chunk}, wanted at least 1, or None")
    volume = volume.expand(len(cone.views), -1, -1, -1, -1)
    if _fits(volume, cone.views) or _fits_kernels(volume, cone.views):
        found: Tensor = _Project.apply(volume, cone)
        return found
    if volume.dtype not in _NAMES:
        return _sampled(volume.float(), cone, chunk).to(volume.dtype)
    return _sampled(volume, cone, chunk)


def _cone(
    volume: Tensor,
    spacing: Sequence[float],
    angle_deg: float | Tensor,
    detector_shape: Sequence[int],
    pixel_size: float | Sequence[float],
    to_iso: float,
    to_detector: float,
    step: float | None,
) -> _Cone:
    if volume.dim() != 5 or volume.shape[1] != 1 or not volume.numel():
        raise ValueError(f"volume: got the shape {tuple(volume.shape)}, wanted (B, 1, X, Y, Z), not empty")
    if not volume.is_floating_point():
        raise TypeError(f"volume: got {volume.dtype}, wanted a floating-point tensor")
    found = tuple(float(s) for s in spacing)
    if len(found) != 3 or not all(0 < s < math.inf for s in found):
        raise ValueError(f"spacing: got {found}, wanted three positive numbers")
    shape = tuple(int(n) for n in detector_shape)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"detector_shape: got {shape}, wanted two positive numbers")
    pixel = (float(pixel_size),) * 2 if isinstance(pixel_size, int | float) else tuple(float(p) for p in pixel_size)
    if len(pixel) != 2 or not all(0 < p < math.inf for p in pixel):
        raise ValueError(f"pixel_size: got {pixel_size}, wanted a positive number, or two")
    if to_iso <= 0:
        raise ValueError(f"source_to_iso: got {to_iso}, wanted a positive number")
    if to_detector <= to_iso:
        raise ValueError(f"source_to_detector: got {to_detector}, wanted more than source_to_iso={to_iso}")
    step = min(found) / 2 if step is None else float(step)
    if not 0 < step < math.inf:
        raise ValueError(f"step: got {step}, wanted a positive number, or None")
    angles = torch.as_tensor(angle_deg, dtype=torch.float64, device=volume.device)
    batch = len(volume)
    if angles.dim() > 1 or (angles.dim() == 1 and (not len(angles) or batch not in (1, len(angles)))):
        raise ValueError(f"angle_deg: got the shape {tuple(angles.shape)}, wanted one number, or {batch}, one a volume")
    angles = angles.expand(batch) if angles.dim() == 0 else angles
    views = _views(angles, (pixel[0], pixel[1]), float(to_iso), float(to_detector))
    x, y, z = volume.shape[2:]
    return _Cone(views, (found[0], found[1], found[2]), (x, y, z), (shape[0], shape[1]), step)


def _fits(volume: Tensor, views: Tensor) -> bool:
    """Whether the loops can take it: on the CPU, nothing traced, indices of 32 bits, angles without a gradient."""
    return (
        volume.device.type == "cpu"
        and volume.dtype in _NAMES
        and not (views.requires_grad and torch.is_grad_enabled())
        and math.prod(n + 2 for n in volume.shape[2:]) < 2**31
        and not native.must_be_traceable(volume, views)
        and _library() is not None
    )


def _fits_kernels(volume: Tensor, views: Tensor) -> bool:
    """Whether the kernels can take it: float32 on a GPU, with triton."""
    return (
        volume.is_cuda
        and volume.dtype == torch.float32
        and not (views.requires_grad and torch.is_grad_enabled())
        and volume[0].numel() < 2**31
        and not native.must_be_traceable(volume, views)
        and importlib.util.find_spec("triton") is not None
    )


def _call(what: str, volume: Tensor, image: Tensor, cone: _Cone) -> None:
    """`volume` padded by a plane on each side, (B, 1, X + 2, Y + 2, Z + 2)."""
    views = cone.views.detach().contiguous()
    spacing = torch.tensor(cone.spacing, dtype=torch.float64)
    size = torch.tensor(volume.shape[2:], dtype=torch.int64)
    pointers = (t.data_ptr() for t in (volume, image, views, spacing, size))
    function = getattr(_library(), f"{what}_{_NAMES[volume.dtype]}")
    function(*pointers, cone.radius, cone.step, len(volume), *cone.pixels, torch.get_num_threads())


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, cone: _Cone) -> Tensor:
        ctx.cone = cone
        if volume.is_cuda:
            from paperworks.data import radiographs_triton

            found: Tensor = radiographs_triton.project(volume.contiguous(), *_walks(cone), cone.step)
            return found.view(len(volume), 1, *cone.pixels)
        out = volume.new_empty(len(volume), 1, *cone.pixels)
        _call("project", F.pad(volume, (1,) * 6).contiguous(), out, cone)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        return _SpreadBack.apply(d_out, ctx.cone), None


class _SpreadBack(torch.autograd.Function):
    """The adjoint of `_Project`."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, cone: _Cone) -> Tensor:
        ctx.cone = cone
        if image.is_cuda:
            from paperworks.data import radiographs_triton

            found: Tensor = radiographs_triton.spread_back(image.contiguous(), cone.size, *_walks(cone), cone.step)
            return found
        volume = image.new_zeros(len(image), 1, *(n + 2 for n in cone.size))
        _call("spread_back", volume, image.contiguous(), cone)
        return volume[..., 1:-1, 1:-1, 1:-1]

    @staticmethod
    def backward(ctx: Any, d_volume: Tensor) -> tuple[Tensor, None]:
        return _Project.apply(d_volume, ctx.cone), None


def _sampled(volume: Tensor, cone: _Cone, chunk: int | None) -> Tensor:
    """The same by `grid_sample`, some rays at a time."""
    h, w = cone.pixels
    chunk = chunk or (_RAYS if volume.device.type == "cpu" else h * w)
    rays = torch.arange(h * w, device=volume.device)
    parts = [_along(volume, cone, some) for some in rays.split(chunk)]
    return torch.cat(parts, 1).view(len(volume), 1, h, w)


def _lines(cone: _Cone, rays: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source (B, 1, 3), direction (B, n, 3), entry (B, n) and number of samples (B, n) of the rays to some pixels.

    In float64: the distances are long beside the voxels.
    """
    h, w = cone.pixels
    source, middle, across, up = (part.unsqueeze(1) for part in cone.views.split(3, -1))
    u = (rays // w).double().sub(0.5 * (h - 1)).unsqueeze(-1)
    v = (rays % w).double().sub(0.5 * (w - 1)).unsqueeze(-1)
    way = F.normalize(middle + u * across + v * up - source, dim=-1)
    along = (way * source).sum(-1)
    inside = cone.radius**2 - (source - along.unsqueeze(-1) * way).square().sum(-1)
    # a ray past the sphere gets no samples; its root is taken of 1, for the gradient of the angle
    half = torch.where(inside > 0, torch.where(inside > 0, inside, 1.0).sqrt(), 0.0)
    entry = (-along - half).clamp(min=0)
    return source, way, entry, ((-along + half - entry) / cone.step).ceil().clamp(min=0)


def _along(volume: Tensor, cone: _Cone, rays: Tensor) -> Tensor:
    """Integrals (B, n) along the rays to the given pixels."""
    source, way, entry, count = _lines(cone, rays)
    k = torch.arange(math.ceil(2 * cone.radius / cone.step) + 1, device=volume.device, dtype=torch.float64)
    t = entry.unsqueeze(-1) + (k + 0.5) * cone.step
    sizes = [n * s for n, s in zip(cone.size, cone.spacing, strict=True)]
    extent = torch.tensor(sizes, dtype=torch.float64, device=volume.device)
    places = (source.unsqueeze(2) + t.unsqueeze(-1) * way.unsqueeze(2)) * (2 / extent)  # -1 and 1 are the outer faces
    grid = places.flip(-1).to(volume.dtype).unsqueeze(1)
    values = F.grid_sample(volume, grid, align_corners=False)[:, 0, 0]
    return (values * (k < count.unsqueeze(-1))).sum(-1) * cone.step


def _walks(cone: _Cone) -> tuple[Tensor, int]:
    """For a kernel: first place and step of each ray in voxels, and how many samples, (B, h w, 7) float32; their most.

    The samples are cut to those that the volume reaches.
    """
    h, w = cone.pixels
    device = cone.views.device
    source, way, entry, count = _lines(cone, torch.arange(h * w, device=device))
    spacing = torch.tensor(cone.spacing, dtype=torch.float64, device=device)
    size = torch.tensor(cone.size, dtype=torch.float64, device=device)
    by = way * cone.step / spacing
    at = (source + (entry.unsqueeze(-1) + 0.5 * cone.step) * way) / spacing + (size - 1) / 2
    ends = torch.stack([(-1 - at) / by, (size - at) / by])
    still = torch.where((at > -1) & (at < size), torch.inf, -torch.inf)  # along an axis that the ray does not go
    first = torch.where(by == 0, -still, ends.amin(0)).amax(-1).ceil().clamp(min=0)
    last = torch.where(by == 0, still, ends.amax(0)).amin(-1).floor().add(1).minimum(count)
    n = (last - first).clamp(min=0)
    first = torch.where(n > 0, first, 0.0).unsqueeze(-1)
    return torch.cat([at + first * by, by, n.unsqueeze(-1)], -1).float().contiguous(), int(n.max())


def to_radiograph(line_integrals: Tensor, mode: str = "repo", mu: float = 0.02) -> Tensor:
    """A picture in [0, 1] from line integrals (B, 1, h, w), bright where much is absorbed.

    Args:
        line_integrals: what `drr` returns.
        mode: ``"repo"``, each image stretched from its least to its largest value, as the paper's code does it (an
            image of one value becomes 0); ``"beer"``, the share that is absorbed, 1 - exp(-mu r) (Beer and Lambert).
        mu: attenuation by mm at a value of 1.
    """
    if mode == "beer":
        return -torch.expm1(-mu * line_integrals)
    if mode != "repo":
        raise ValueError(f"mode: got {mode!r}, wanted 'repo' or 'beer'")
    if line_integrals.dim() < 2 or not line_integrals.numel():
        raise ValueError(f"line_integrals: got the shape {tuple(line_integrals.shape)}, wanted (B, 1, h, w), not empty")
    low, high = line_integrals.amin((-2, -1), keepdim=True), line_integrals.amax((-2, -1), keepdim=True)
    return (line_integrals - low) / torch.where(high > low, high - low, 1.0)


def biplanar_pair(ct_hu: Tensor, spacing: Sequence[float], **drr_kwargs: Any) -> tuple[Tensor, Tensor]:
    """The radiographs of a CT at 0 (coronal, axes x and z) and 90 degrees (sagittal, y and z), stretched to [0, 1].

    Args:
        ct_hu: (B, 1, X, Y, Z) Hounsfield units; below 0 (air, fat) nothing is absorbed.
        spacing, drr_kwargs: see `drr`.
    """
    absorbed = ct_hu.clamp(min=0)
    coronal, sagittal = (to_radiograph(drr(absorbed, spacing, angle, **drr_kwargs)) for angle in (0.0, 90.0))
    return coronal, sagittal
