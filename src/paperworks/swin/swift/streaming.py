"""Scores while a scan runs: windows of frames are scored as soon as their last frame is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["StreamedScore", "stream_scores"]


class StreamedScore(NamedTuple):
    """The score of a window and of the subject so far.

    Attributes:
        start: the window's first frame.
        logits: (outputs,), of the window.
        mean: (outputs,), over all windows up to this one: what `subject_scores` gives at the end.
    """

    start: int
    logits: Tensor
    mean: Tensor


def stream_scores(
    model: nn.Module | Callable[[Tensor], Tensor], frames: Iterable[Tensor], length: int = 20, stride: int = 20
) -> Iterator[StreamedScore]:
    """Score windows of a run that arrives frame by frame; `length` frames are held, whatever the run's length.

    Args:
        model: clips (1, C, H, W, D, length) -> (1, outputs). A module is run in eval mode, on the device and in the
            type of its parameters, and without gradients.
        frames: volumes (H, W, D) or (C, H, W, D), normalised as the network was trained. Normalisation over a whole
            run is not known while it lasts: take the statistics of a first part, or of a scan before.
        length, stride: frames of a window, and between the starts of two.

    Yields one `StreamedScore` a window, as `FMRIClips` would cut them. Raises ValueError for a frame of another shape.
    """
    for name, value in (("length", length), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted 1 or more")
    return _scores(model, frames, length, stride)


def _scores(
    model: nn.Module | Callable[[Tensor], Tensor], frames: Iterable[Tensor], length: int, stride: int
) -> Iterator[StreamedScore]:
    held: deque[Tensor] = deque(maxlen=length)
    total, windows = torch.zeros(()), 0
    like = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    for number, frame in enumerate(frames):
        volume = frame.unsqueeze(0) if frame.dim() == 3 else frame
        if volume.dim() != 4 or (held and volume.shape != held[0].shape):
            wanted = f"(H, W, D) or (C, H, W, D){f', of {tuple(held[0].shape)} as before' if held else ''}"
            raise ValueError(f"frames: got the shape {tuple(frame.shape)} at {number}, wanted {wanted}")
        held.append(volume if like is None else volume.to(like))
        start = number - length + 1
        if start < 0 or start % stride:
            continue
        logits = _evaluated(model, torch.stack(list(held), -1).unsqueeze(0))[0]
        total, windows = total + logits, windows + 1
        yield StreamedScore(start, logits, total / windows)


@torch.no_grad()
def _evaluated(model: nn.Module | Callable[[Tensor], Tensor], clip: Tensor) -> Tensor:
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        return model(clip).float().cpu()
    finally:
        for module in training:
            module.training = True
