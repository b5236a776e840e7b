"""Augmentation of clips: one affine map, one noise volume and one smoothing a clip, the same for all its frames.

The frames of a clip differ by a few per cent of their intensity; a map drawn anew for each frame would look like head
motion and drown that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClipAugment"]


class ClipAugment(nn.Module):
    """Random rotation and scaling, Gaussian noise and Gaussian smoothing of clips (B, C, H, W, D, T).

    Args:
        degrees: each of three rotations is uniform in +- this.
        scale: each axis is sampled at 1 + uniform(-scale, scale) of its distance to the centre.
        noise_p, noise_std: probability of noise, and the largest deviation of it; the deviation is uniform up to that.
        smooth_p, smooth_sigma: probability of smoothing, and the range of its deviation in voxels, drawn for each axis.

    Outside the volume the border's values are taken. The input is left as it is. MONAI's `RandAffine`,
    `RandGaussianNoise` and `RandGaussianSmooth`, with one draw a clip, do the same.
    """

    def __init__(
        self,
        degrees: float = 10.0,
        scale: float = 0.1,
        noise_p: float = 0.3,
        noise_std: float = 0.1,
        smooth_p: float = 0.1,
        smooth_sigma: Sequence[float] = (0.0, 0.5),
    ) -> None:
        super().__init__()
        for name, value, least, most in (
            ("degrees", degrees, 0.0, 180.0),
            ("scale", scale, 0.0, 0.99),
            ("noise_p", noise_p, 0.0, 1.0),
            ("noise_std", noise_std, 0.0, math.inf),
            ("smooth_p", smooth_p, 0.0, 1.0),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name}: got {value}, wanted {least:g} to {most:g}")
        low, high = smooth_sigma
        if not 0 <= low <= high:
            raise ValueError(f"smooth_sigma: got {tuple(smooth_sigma)}, wanted 0 <= low <= high")
        self.degrees, self.scale = degrees, scale
        self.noise_p, self.noise_std = noise_p, noise_std
        self.smooth_p, self.smooth_sigma = smooth_p, (float(low), float(high))

    def extra_repr(self) -> str:
        """Ranges and probabilities."""
        return f"degrees={self.degrees}, scale={self.scale}, noise_p={self.noise_p}, smooth_p={self.smooth_p}"

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented clips, a new tensor of the shape of `x`; `generator` is on the CPU (None: PyTorch's own)."""
        if x.dim() != 6:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, C, H, W, D, T)")
        if not x.is_floating_point():
            raise TypeError(f"x: got {x.dtype}, wanted a floating type")
        if not x.numel():
            return x.clone()
        batch, space = x.shape[0], x.shape[2:5]
        draws = torch.rand(batch, 12, generator=generator)
        angles = (2 * draws[:, :3] - 1) * math.radians(self.degrees)
        scales = 1 + (2 * draws[:, 3:6] - 1) * self.scale
        clips = affine(x, angles, scales) if self.degrees or self.scale else x.clone()
        noisy = draws[:, 6] < self.noise_p
        if bool(noisy.any()):
            deviation = (draws[:, 7] * self.noise_std * noisy).to(x)
            volume = torch.randn(batch, x.shape[1], *space, 1, generator=generator).to(x)
            clips = clips + volume * deviation.view(-1, 1, 1, 1, 1, 1)
        low, high = self.smooth_sigma
        sigmas = low + (high - low) * draws[:, 9:]
        for i in torch.nonzero(draws[:, 8] < self.smooth_p).flatten().tolist():
            smooth = gaussian_smooth(clips[i], sigmas[i].tolist())
            clips = torch.cat([clips[:i], smooth.unsqueeze(0), clips[i + 1 :]])
        return clips


def rotation(angles: Tensor) -> Tensor:
    """R_x R_y R_z of angles (B, 3) in radians about the axes H, W, D: (B, 3, 3)."""
    found = torch.eye(3, dtype=angles.dtype).expand(len(angles), 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        one = torch.eye(3, dtype=angles.dtype).repeat(len(angles), 1, 1)
        one[:, i, i] = one[:, j, j] = angles[:, axis].cos()
        one[:, j, i] = angles[:, axis].sin()
        one[:, i, j] = -one[:, j, i]
        found = found @ one
    return found


def affine(x: Tensor, angles: Tensor, scales: Tensor) -> Tensor:
    """Clips (B, C, H, W, D, T) at the places R S p of each place p, both from the centre in voxels; trilinear.

    Args:
        angles, scales: (B, 3), in radians about, and factors along, the axes H, W, D.
    """
    batch, channels, *space, frames = x.shape
    half = (torch.tensor(space, dtype=torch.float32) - 1).clamp(min=1) / 2
    # grid_sample counts places from -1 to 1 on each axis, and names the axes from the last to the first
    voxels = rotation(angles) @ torch.diag_embed(scales)
    theta = (voxels * half / half.unsqueeze(1)).flip(1, 2)
    theta = torch.cat([theta, torch.zeros(batch, 3, 1)], 2).to(x)
    grid = F.affine_grid(theta, [batch, channels, *space], align_corners=True)
    stacked = x.movedim(-1, 2).reshape(batch, channels * frames, *space)
    found = F.grid_sample(stacked, grid, "bilinear", "border", align_corners=True)
    return found.view(batch, channels, frames, *space).movedim(2, -1)


def gaussian_smooth(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Smooth (C, H, W, D, T) along H, W, D by Gaussians integrated over voxels; zeros outside."""
    for axis, sigma in enumerate(sigmas, start=1):
        if sigma <= 0:
            continue
        reach = max(1, math.ceil(4 * sigma))
        edges = (torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5) / (sigma * math.sqrt(2))
        kernel = torch.special.erf(edges).diff() / 2
        moved = x.movedim(axis, -1)
        lines = moved.reshape(-1, 1, moved.shape[-1])
        smooth = F.conv1d(lines, kernel.to(x).view(1, 1, -1), padding=reach)
        x = smooth.view(moved.shape).movedim(-1, axis)
    return x
