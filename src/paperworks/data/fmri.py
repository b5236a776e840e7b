"""Clips of functional MRI that a network is trained on, from runs of many subjects.

Layouts, below a root: ``<subject>.nii`` or ``<subject>.nii.gz`` with axes (H, W, D, T), registered to one space; or
``img/<subject>/frame_<i>.pt`` (also without ``img``), as `preprocess_nifti` writes them. See `fmri_runs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from paperworks.data.fmri_runs import (
    SCALINGS,
    Scale,
    Space,
    check_scaling,
    count_frames,
    find_runs,
    from_grid,
    preprocess_nifti,
    read_run,
    read_space,
    read_targets,
    scale_of,
    to_grid,
)
from paperworks.data.fmri_simulation import SimulatedFMRI, simulate_fmri

__all__ = [
    "FMRIClips",
    "SimulatedFMRI",
    "Space",
    "SubjectBatches",
    "find_runs",
    "from_grid",
    "preprocess_nifti",
    "read_space",
    "read_targets",
    "simulate_fmri",
    "to_grid",
]


class FMRIClips(Dataset[dict[str, Any]]):
    """Clips of consecutive frames of many subjects' runs.

    An item is ``{"image": (1, H, W, D, T) float32, "target": float, "subject": str, "start": first frame}``; with
    `contrastive` also ``"other"`` and ``"other_start"``, a clip of the same run that shares no frame with the first.

    Args:
        root: folder with runs, see the module.
        targets: by subject. Their order is the order of the clips.
        length: frames of a clip.
        stride: frames between the starts of two clips of a subject.
        contrastive: whether there is a second clip, drawn anew each epoch (see `set_epoch`).
        pad_to: sizes that volumes are brought to, centred, with the background's value (of voxel 0) around them; None
            leaves them.
        scaling: of NIfTI runs, ``"z-norm"``, ``"minmax"`` or None; frames are normalised already.
        seed: of the second clips.

    Only whole clips count: a run shorter than `length` has none; with `contrastive`, a clip that leaves no room for
    another one is left out. NIfTI files are read once for their statistics and again for each clip: for training,
    `preprocess_nifti` them. Raises ValueError that names subjects without a run, or runs with missing frames.
    """

    def __init__(
        self,
        root: str | Path,
        targets: Mapping[str, float],
        length: int = 20,
        stride: int = 20,
        contrastive: bool = False,
        pad_to: Sequence[int] | None = (96, 96, 96),
        *,
        scaling: str | None = "z-norm",
        seed: int = 0,
    ) -> None:
        for name, value in (("length", length), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, wanted 1 or more")
        if pad_to is not None and (len(pad_to) != 3 or min(pad_to) < 1):
            raise ValueError(f"pad_to: got {tuple(pad_to)}, wanted three sizes")
        check_scaling(scaling, (*SCALINGS, None))
        self.targets, self.length, self.stride, self.contrastive = dict(targets), length, stride, contrastive
        self.pad_to, self.scaling, self.seed, self.epoch = pad_to, scaling, seed, 0
        self.runs = find_runs(root, list(targets))
        missing = [subject for subject in targets if subject not in self.runs]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(f"targets: no run below {str(root)!r} of {', '.join(missing[:5])}{more}")
        self.n_frames = {subject: count_frames(path) for subject, path in self.runs.items()}
        self.clips = [
            (subject, start)
            for subject in targets
            for start in range(0, self.n_frames[subject] - length + 1, stride)
            if not contrastive or len(self._others(subject, start))
        ]
        self._scales: dict[str, Scale] = {}

    @property
    def subjects(self) -> list[str]:
        """The subject of each clip."""
        return [subject for subject, _ in self.clips]

    def set_epoch(self, epoch: int) -> None:
        """Draw other second clips from here on: they depend on seed, epoch and index."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        subject, start = self.clips[index]
        item = {"image": self._clip(subject, start), "target": float(self.targets[subject])}
        item |= {"subject": subject, "start": start}
        if self.contrastive:
            others = self._others(subject, start)
            draw = np.random.default_rng((self.seed, self.epoch, index % len(self))).integers(len(others))
            item |= {"other": self._clip(subject, int(others[draw])), "other_start": int(others[draw])}
        return item

    def _others(self, subject: str, start: int) -> npt.NDArray[np.int64]:
        """Starts of the clips of a run that share no frame with the one at `start`."""
        starts = np.arange(self.n_frames[subject] - self.length + 1)
        return starts[np.abs(starts - start) >= self.length]

    def _clip(self, subject: str, start: int) -> Tensor:
        path = self.runs[subject]
        if path.is_dir():
            frames = [torch.load(path / f"frame_{i}.pt", weights_only=True) for i in range(start, start + self.length)]
            clip = torch.cat([frame.float().view(*frame.shape[:3], 1) for frame in frames], 3)
        else:
            data, _ = read_run(path)
            if self.scaling is not None and subject not in self._scales:
                self._scales[subject] = scale_of(data, self.scaling, path.name)
            clip = data[..., start : start + self.length].contiguous()
            clip = clip if self.scaling is None else self._scales[subject](clip)
        if self.pad_to is not None:
            clip = to_grid(clip, self.pad_to, float(clip[0, 0, 0, 0]))
        return clip.unsqueeze(0)


class SubjectBatches(Sampler[list[int]]):
    """Batches of clips of which no two are of one subject: for contrast between subjects.

    Args:
        subjects: the subject of each clip, as `FMRIClips.subjects`.
        batch_size: clips a batch.
        generator: of the order, drawn anew at each pass; None for PyTorch's own.
        drop_last: leave out batches that are smaller.

    In each round every subject that still has a clip gives one.
    """

    def __init__(
        self,
        subjects: Sequence[str],
        batch_size: int,
        generator: torch.Generator | None = None,
        drop_last: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, wanted 1 or more")
        self.batch_size, self.generator, self.drop_last = batch_size, generator, drop_last
        self.clips: dict[str, list[int]] = {}
        for i, subject in enumerate(subjects):
            self.clips.setdefault(subject, []).append(i)

    def __len__(self) -> int:
        rounds = [0] * max(map(len, self.clips.values()), default=0)
        for clips in self.clips.values():
            for i in range(len(clips)):
                rounds[i] += 1
        return sum(n // self.batch_size + (not self.drop_last and n % self.batch_size > 0) for n in rounds)

    def __iter__(self) -> Iterator[list[int]]:
        mixed = [
            [clips[i] for i in torch.randperm(len(clips), generator=self.generator).tolist()]
            for clips in self.clips.values()
        ]
        for number in range(max(map(len, mixed), default=0)):
            there = [clips[number] for clips in mixed if number < len(clips)]
            order = [there[i] for i in torch.randperm(len(there), generator=self.generator).tolist()]
            for first in range(0, len(order), self.batch_size):
                batch = order[first : first + self.batch_size]
                if len(batch) == self.batch_size or not self.drop_last:
                    yield batch
