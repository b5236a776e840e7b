"""Which voxels and frames an output rests on: integrated gradients with SmoothGrad, and the way back to NIfTI.

IG_i(x) = (x_i - b_i) int_0^1 df(b + a (x - b)) / dx_i da, from a volume b without signal to the clip x (Sundararajan et
al., 2017). Summed over all voxels it is f(x) - f(b).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["attribution_to_nifti", "background", "integrated_gradients"]

Model = Callable[[Tensor], Tensor]


def background(x: Tensor) -> Tensor:
    """The value of voxel 0 in the first frame of each clip (B, C, H, W, D, T): (B, 1, 1, 1, 1, 1)."""
    return x[(slice(None), *(slice(0, 1) for _ in x.shape[1:]))]


def integrated_gradients(
    model: Model,
    x: Tensor,
    *,
    baseline: float | Tensor | None = None,
    steps: int = 50,
    smooth: int = 0,
    sigma: float = 0.1,
    squared: bool = False,
    target: int = 0,
    internal_batch: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Integrated gradients of one output of `model`, by Gauss-Legendre quadrature.

    Args:
        model: (B, ...) -> (B, outputs) or (B,); a module is in eval mode meanwhile.
        x: (B, ...), floating, clips (B, C, H, W, D, T) as a rule.
        baseline: where the path begins: a number, a tensor that broadcasts to `x`, or None for `background`.
        steps: points of the quadrature.
        smooth: with n > 0, the mean over n copies of `x` with normal noise of deviation `sigma` (SmoothGrad).
        sigma: deviation of the noise.
        squared: mean of the squares over the noisy copies (SmoothGrad-squared, as the published maps).
        target: column of the output.
        internal_batch: points of the path that go through the model at once.
        generator: of the noise, on the CPU; None for PyTorch's own.

    Returns the attribution, of the shape of `x`, with an attribute ``residual`` (B,): f(x) - f(baseline) minus the sum
    of the attribution. It vanishes up to the quadrature where there is no noise. Raises ValueError for an option out
    of its range, or an output without that column.
    """
    for name, value, least in (("steps", steps, 1), ("smooth", smooth, 0), ("internal_batch", internal_batch, 1)):
        if value < least:
            raise ValueError(f"{name}: got {value}, wanted {least} or more")
    if not sigma >= 0:
        raise ValueError(f"sigma: got {sigma}, wanted 0 or more")
    if squared and not smooth:
        raise ValueError("squared: got True without noise, wanted smooth > 0")
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, wanted a floating type")
    if not x.numel():
        raise ValueError(f"x: got the shape {tuple(x.shape)}, which is empty")
    start = background(x) if baseline is None else torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    try:
        start = start.detach().expand_as(x)
    except RuntimeError:
        got = tuple(start.shape)
        raise ValueError(f"baseline: got the shape {got}, wanted one that broadcasts to {tuple(x.shape)}") from None
    x = x.detach()
    nodes, weights = _legendre(steps)
    with _evaluating(model):
        found = torch.zeros_like(x)
        for _ in range(max(1, smooth)):
            noise = torch.randn(x.shape, generator=generator).to(x) * sigma if smooth else None
            end = x if noise is None else x + noise
            one = (end - start) * _mean_gradient(model, start, end, nodes, weights, target, internal_batch)
            found += (one * one if squared else one) / max(1, smooth)
        with torch.no_grad():
            ends = [torch.cat([_column(model(p[i : i + 1]), target) for i in range(len(x))]) for p in (x, start)]
    found.residual = ends[0] - ends[1] - found.flatten(1).sum(1)  # type: ignore[attr-defined]
    return found


def _legendre(steps: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the quadrature on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def _column(output: Tensor, target: int) -> Tensor:
    """(B,) of (B, outputs) or (B,)."""
    output = output.unsqueeze(1) if output.dim() == 1 else output
    if output.dim() != 2 or not 0 <= target < output.shape[1]:
        got = f"{target} for an output of the shape {tuple(output.shape)}"
        raise ValueError(f"target: got {got}, wanted a column of (B, outputs)")
    return output[:, target]


def _mean_gradient(
    model: Model, start: Tensor, end: Tensor, nodes: list[float], weights: list[float], target: int, at_once: int
) -> Tensor:
    """The gradient of each sample's output averaged along its path."""
    found = torch.zeros_like(end)
    for i in range(len(end)):
        for first in range(0, len(nodes), at_once):
            part = slice(first, first + at_once)
            at, weight = (
                torch.tensor(values[part], dtype=end.dtype, device=end.device).view(-1, *(1,) * (end.dim() - 1))
                for values in (nodes, weights)
            )
            points = (start[i : i + 1] + at * (end[i : i + 1] - start[i : i + 1])).requires_grad_()
            with torch.enable_grad():
                output = _column(model(points), target).sum()
                [gradient] = torch.autograd.grad(output, points)
            found[i] += (weight * gradient).sum(0)
    return found


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Eval mode of every part of a module inside the block, and its own mode after it."""
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def attribution_to_nifti(attr: Tensor, like: str | Path, path: str | Path) -> None:
    """Write an attribution at the place that its clip was read from.

    Args:
        attr: (H, W, D), (H, W, D, T), or that behind axes of size 1, as one sample of `integrated_gradients`. What
            `FMRIClips` padded is cut off; what it cut off is zero.
        like: the NIfTI file the clip came from, or the folder of frames of `preprocess_nifti`, for size and affine.
        path: ends in ``.nii`` or ``.nii.gz``.

    Raises ValueError for another number of axes.
    """
    from paperworks.data.fmri import from_grid, read_space
    from paperworks.data.volumes import write_nifti

    values = attr.detach().float().cpu()
    while values.dim() > 4 and values.shape[0] == 1:
        values = values.squeeze(0)
    if values.dim() not in (3, 4):
        raise ValueError(f"attr: got the shape {tuple(attr.shape)}, wanted (H, W, D) or (H, W, D, T) of one sample")
    space = read_space(like)
    write_nifti(path, from_grid(values, space).numpy(), space.affine, seconds=space.seconds)
