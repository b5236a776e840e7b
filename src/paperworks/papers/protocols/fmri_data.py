"""Data of the fMRI protocols: simulated runs, or a user's folder of runs with a table of targets, split by subject."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paperworks.data.fmri import FMRIClips, SimulatedFMRI, find_runs, read_targets, simulate_fmri
from paperworks.data.fmri_simulation import EFFECTS
from paperworks.lab.trial import Trial


class SimulatedClips(Dataset[dict[str, Any]]):
    """Clips of simulated runs, as items of `FMRIClips`.

    Args:
        runs: all the runs.
        members: indices of the subjects that belong here.
        length, stride: frames of a clip and between two starts.
    """

    def __init__(self, runs: SimulatedFMRI, members: Sequence[int], length: int, stride: int) -> None:
        self.runs, self.length = runs, length
        last = runs.images.shape[5] - length
        self.clips = [(i, start) for i in members for start in range(0, last + 1, stride)]
        self.targets = {str(i): float(runs.labels[i]) for i in members}

    @property
    def subjects(self) -> list[str]:
        """The subject of each clip."""
        return [str(i) for i, _ in self.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i, start = self.clips[index]
        image = self.runs.images[i, ..., start : start + self.length]
        return {"image": image, "target": float(self.runs.labels[i]), "subject": str(i), "start": start}


Clips = FMRIClips | SimulatedClips


@dataclass(frozen=True)
class Task:
    """Training, validation and test clips of different subjects, and sizes of a clip (H, W, D, T).

    `unlabelled` subjects are for pre-training; `runs` is known of simulated data only.
    """

    train: Clips
    validation: Clips
    test: Clips
    unlabelled: Clips
    size: tuple[int, int, int, int]
    runs: SimulatedFMRI | None = None


def load_task(trial: Trial) -> Task:
    """The task of the settings; which subject is where is the seed's, in the same proportion of both classes."""
    settings = trial.settings
    name, _, path = str(settings["data"]).partition(":")
    if name == "fmri":
        return _real(trial, Path(path).expanduser())
    return _simulated(trial, name)


def _parts(names: Sequence[Any], sizes: Sequence[int], generator: torch.Generator) -> list[list[Any]]:
    order = torch.randperm(len(names), generator=generator).tolist()
    mixed, found = [names[i] for i in order], []
    for size in sizes:
        found.append(mixed[:size])
        mixed = mixed[size:]
    return found


def _shares(names: Sequence[str], trial: Trial, purpose: str) -> list[list[str]]:
    """70, 15 and 15 % of the subjects, at least one in each."""
    held = max(1, round(0.15 * len(names)))
    return _parts(names, (len(names) - 2 * held, held, held), trial.generator(purpose))


def _simulated(trial: Trial, effect: str) -> Task:
    settings = trial.settings
    edge, frames, length = settings["space"], settings["run_frames"], settings["frames"]
    counts = [settings[name] for name in ("train_subjects", "validation_subjects", "test_subjects", "unlabelled")]
    runs = simulate_fmri(
        sum(counts), (edge, edge, edge, frames), trial.generator("runs"), effect=effect, strength=settings["strength"]
    )
    parts = _parts(range(sum(counts)), counts, trial.generator("split"))
    clips = [SimulatedClips(runs, part, length, settings["stride"]) for part in parts]
    return Task(clips[0], clips[1], clips[2], clips[3], (edge, edge, edge, length), runs)


def _real(trial: Trial, root: Path) -> Task:
    settings = trial.settings
    targets = read_targets(settings["labels"], settings["target"], settings["subject"])
    runs = find_runs(root, list(targets))
    if len(runs) < 4:
        raise ValueError(
            f"data: got {len(runs)} runs below {root} with a target {settings['target']!r}, wanted 4 or more"
        )
    length, edge = settings["frames"], settings["space"]
    groups = [[name for name in runs if targets[name] == value] for value in (0.0, 1.0)]
    if sum(map(len, groups)) < len(runs) or min(map(len, groups)) < 3:
        groups = [list(runs)]
    shares = [_shares(group, trial, f"split {i}") for i, group in enumerate(groups)]
    parts = [[name for group in same for name in group] for same in zip(*shares, strict=True)]

    def clips(part: Sequence[str], contrastive: bool = False) -> FMRIClips:
        chosen: Mapping[str, float] = {name: targets[name] for name in part}
        pad = (edge, edge, edge)
        return FMRIClips(root, chosen, length, settings["stride"], contrastive, pad, seed=trial.derived_seed("other"))

    train, validation, test = (clips(part) for part in parts)
    return Task(train, validation, test, clips(parts[0], True), (edge, edge, edge, length))


def batch_of(clips: Clips, index: Sequence[int], device: str) -> tuple[Tensor, Tensor]:
    """Images (B, 1, H, W, D, T) and targets (B,)."""
    items = [clips[i] for i in index]
    images = torch.stack([item["image"] for item in items]).to(device)
    return images, torch.tensor([item["target"] for item in items], device=device)


def pair_of(clips: Clips, index: Sequence[int], generator: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    """Two clips of each subject that share no frame."""
    if isinstance(clips, FMRIClips):
        items = [clips[i] for i in index]
        first, second = (torch.stack([item[name] for item in items]) for name in ("image", "other"))
        return first.to(device), second.to(device)
    one, other = [], []
    for i in index:
        subject, start = clips.clips[i]
        starts = [s for s in range(clips.runs.images.shape[5] - clips.length + 1) if abs(s - start) >= clips.length]
        if not starts:
            raise ValueError(
                f"run_frames: got {clips.runs.images.shape[5]}, wanted room for two clips of {clips.length}"
            )
        s = starts[int(torch.randint(len(starts), (1,), generator=generator))]
        one.append(clips[i]["image"])
        other.append(clips.runs.images[subject, ..., s : s + clips.length])
    return torch.stack(one).to(device), torch.stack(other).to(device)


def check_data(value: str) -> None:
    """Raises ValueError unless `value` names an effect of the simulator or a folder."""
    if value not in EFFECTS and not value.startswith("fmri:"):
        raise ValueError(f"got {value!r}, wanted {', '.join(EFFECTS)} or fmri:PATH")


def data_signature(value: str) -> str:
    """What a cached result depends on: the names, sizes and times of the files below a folder, and a table's."""
    path = Path(value.removeprefix("fmri:")).expanduser()
    if not value or not path.exists():
        return value
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.relative_to(path.parent)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"fmri-{digest.hexdigest()[:32]}"
