"""Localisation maps over scales and mirror images, and where these disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.swin.swtformer.maps import EPS, check_labels
from paperworks.swin.swtformer.network import SWTformer
from paperworks.swin.swtformer.prompts import seed_mask

__all__ = ["localize", "uncertainty_map"]


@torch.no_grad()
def _views(model: SWTformer, image: Tensor, labels: Tensor, scales: Sequence[float], flip: bool) -> Iterator[Tensor]:
    """The maps (n, K + 1, H, W) of each scale: of the image, and with `flip` of its mirror image, mirrored back."""
    if image.dim() != 3:
        raise ValueError(f"image: got the shape {tuple(image.shape)}, wanted (3, H, W)")
    if not scales or any(scale <= 0 for scale in scales):
        raise ValueError(f"scales: got {tuple(scales)}, wanted positive numbers")
    given = check_labels(labels[None], 1, model.num_classes).to(image.device)
    size, was_training = tuple(image.shape[1:]), model.training
    model.eval()
    try:
        for scale in scales:
            grid = [max(1, round(side * scale / model.stride)) * model.stride for side in size]
            one = F.interpolate(image[None], grid, mode="bilinear", align_corners=False)
            batch = torch.cat([one, one.flip(-1)]) if flip else one
            out = model(batch, given.expand(len(batch), -1))
            maps = out.norm_cam if out.prototype_map is None else out.prototype_map
            found = torch.cat([maps[:1], maps[1:].flip(-1)])
            yield F.interpolate(found, size, mode="bilinear", align_corners=False)
    finally:
        model.train(was_training)


def _labelled(maps: Tensor, labels: Tensor) -> Tensor:
    """Maps (..., K + 1, H, W), each over its maximum, 0 for classes without a label."""
    given = F.pad(labels.to(maps), (1, 0), value=1.0)
    return maps / (maps.amax((-2, -1), keepdim=True) + EPS) * given[:, None, None]


@torch.no_grad()
def localize(
    model: SWTformer,
    image: Tensor,
    labels: Tensor,
    scales: Sequence[float] = (0.5, 1, 1.5, 2),
    flip: bool = True,
) -> Tensor:
    """Localisation maps of one image, summed over scales and mirror images and divided by each map's maximum.

    Version 2 gives its prototype maps I, whose background has a prototype, version 1 the maps M.

    Args:
        model: in evaluation mode during the call, and afterwards as it was.
        image: (3, H, W), of any size: at every scale it is resized to the nearest multiple of the model's stride.
        labels: (K,) of 0 and 1; maps of other classes are 0.
        scales: factors of the image's size.
        flip: add the mirror image, its maps mirrored back.

    Returns (K + 1, H, W) in [0, 1], the background first.
    """
    total = sum(found.sum(0) for found in _views(model, image, labels, scales, flip))
    assert isinstance(total, Tensor)
    return _labelled(total, labels)


@torch.no_grad()
def uncertainty_map(
    model: SWTformer,
    image: Tensor,
    labels: Tensor,
    scales: Sequence[float] = (0.5, 1, 1.5, 2),
    flip: bool = True,
    *,
    threshold: float | None = None,
) -> Tensor:
    """Where the seeds of different scales and mirror images disagree: what a person should look at.

    Each of them votes for a class, or the background, at every pixel; the entropy of the votes, over the logarithm of
    the number of candidates, is 0 where all agree and at most 1.

    Args:
        model, image, labels, scales, flip: see `localize`; two views at least.
        threshold: the constant that is the background of every view; by default its own map.

    Returns (H, W) in [0, 1]. Raises ValueError for a single view.
    """
    if len(scales) * (1 + flip) < 2:
        raise ValueError(f"scales: got {tuple(scales)} without mirror images, wanted two views or more")
    votes = sum(
        F.one_hot(seed_mask(_labelled(one, labels), labels, threshold), model.num_classes + 1)
        for found in _views(model, image, labels, scales, flip)
        for one in found
    )
    assert isinstance(votes, Tensor)
    share = votes.double() / votes.sum(-1, keepdim=True)
    entropy = torch.special.entr(share).sum(-1)
    return (entropy / math.log(max(2, 1 + int(labels.sum())))).to(image.dtype)
