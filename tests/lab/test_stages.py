"""Stages: made once a seed, identity and code; shared by arms; safe against killed and competing processes."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from paperworks.lab import stages
from paperworks.lab.trial import Trial


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stages, "stage_folder", lambda: tmp_path)
    return tmp_path


def counting(trial: Trial, calls: list[int], **identity: Any) -> dict[str, torch.Tensor]:
    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        weight = torch.randn(2, 3, generator=trial.generator("w"))
        return {"w": weight, "w transposed": weight.t(), "step": torch.tensor(4)}

    return trial.stage("pretrained", make, **identity)


def test_it_is_made_once_for_seed_identity_and_code_and_comes_back_equal(folder: Path) -> None:
    calls: list[int] = []
    first = counting(Trial(3, code="a"), calls, steps=5)
    again = counting(Trial(3, code="a"), calls, steps=5)
    assert len(calls) == 1
    assert all(torch.equal(first[name], again[name]) for name in ("w", "w transposed", "step"))
    for other in (Trial(4, code="a"), Trial(3, code="b")):
        counting(other, calls, steps=5)
    counting(Trial(3, code="a"), calls, steps=6)
    assert len(calls) == 4


def test_a_trial_made_by_hand_keeps_nothing(folder: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        counting(Trial(3), calls)
    assert len(calls) == 2
    assert not list(folder.iterdir())


def test_a_stage_that_fails_is_made_again(folder: Path) -> None:
    trial = Trial(1, code="a")
    with pytest.raises(ZeroDivisionError):
        trial.stage("x", lambda: {"y": torch.tensor(1 / 0)})
    assert trial.stage("x", lambda: {"y": torch.tensor(2.0)})["y"] == 2
    with pytest.raises(TypeError, match="dict of tensors"):
        trial.stage("z", lambda: torch.zeros(2))  # type: ignore[arg-type, return-value]


def _slow(folder: Path, queue: Any) -> None:
    stages.stage_folder = lambda: folder  # type: ignore[assignment]

    def make() -> dict[str, torch.Tensor]:
        time.sleep(0.3)
        queue.put("made")
        return {"y": torch.ones(1)}

    Trial(1, code="a").stage("x", make)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_slow, args=(tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert queue.get(timeout=5) == "made"
    assert queue.empty()
