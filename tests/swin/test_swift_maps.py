"""Maps of subjects and groups, clusters by region, and scores while frames arrive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperworks.swin.swift import (
    SwiFT,
    bootstrap_map,
    cluster_report,
    integrated_gradients,
    stream_scores,
    subject_maps,
    subject_scores,
)

SMALL: dict[str, Any] = {
    "img_size": (8, 8, 8, 4), "embed_dim": 6, "patch_size": (4, 4, 4, 1), "window_size": (2, 2, 2, 2),
    "depths": (1, 1), "num_heads": (1, 2), "num_outputs": 1,
}  # fmt: skip


class Linear(nn.Module):
    """The sum over voxels and frames times a weight."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(4, 4, 4)
        weight[1, 2, 3], weight[0, 1, 1] = 2.0, -1.0
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchwdt,hwd->b", x, self.weight).unsqueeze(1)


def item(value: float, target: float, subject: str, start: int) -> dict[str, Any]:
    image = torch.zeros(1, 4, 4, 4, 2)
    image[0, 1, 2, 3] = value
    return {"image": image, "target": target, "subject": subject, "start": start}


def test_maps_are_of_right_and_confident_clips_at_every_hundredth_frame() -> None:
    clips = [
        item(1.0, 1.0, "a", 0), item(2.0, 1.0, "a", 100), item(9.0, 1.0, "a", 50),
        item(-1.0, 1.0, "b", 0), item(0.1, 1.0, "c", 0), item(-0.5, 0.0, "d", 0),
    ]  # fmt: skip
    seen: list[tuple[int, int]] = []
    model = Linear().train()
    found = subject_maps(model, clips, steps=1, smooth=0, progress=lambda i, n: seen.append((i, n)))
    assert list(found) == ["a", "d"], "b is wrong, c not confident"
    assert seen[-1] == (6, 6)
    assert model.training
    expected = torch.zeros(4, 4, 4)
    expected[1, 2, 3] = ((2 * 1.0) ** 2 + (2 * 2.0) ** 2) / 2  # IG of a linear function: weight times value
    torch.testing.assert_close(found["a"], expected)
    unsure = subject_maps(model, clips, steps=1, smooth=0, least=0.5, every=50)
    assert list(unsure) == ["a", "c", "d"]
    noisy = subject_maps(model, clips[:1], steps=2, smooth=3, generator=torch.Generator().manual_seed(0))
    image = clips[0]["image"].unsqueeze(0)
    same = integrated_gradients(
        model, image, steps=2, smooth=3, sigma=1.0, squared=True, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(noisy["a"], same[0, 0].mean(-1))


def test_bounds_hold_the_mean_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(40, 10, 10, 5, generator=generator) + 1
    found = bootstrap_map(list(maps), 400, 0.9, generator)
    torch.testing.assert_close(found.mean, maps.mean(0))
    inside = (found.low <= 1) & (found.high >= 1)
    assert 0.83 < inside.float().mean() < 0.95
    same = bootstrap_map({"a": maps[0], "b": maps[0]}, 50)
    torch.testing.assert_close(same.low, maps[0])
    torch.testing.assert_close(same.high, maps[0])


def test_clusters_and_the_regions_they_lie_in() -> None:
    map, atlas = torch.zeros(6, 6, 6), np.zeros((6, 6, 6), np.int16)
    map[1, 1, 1], map[2, 2, 2], map[4:6, 5, 5] = 3.0, 5.0, 4.0  # a corner apart is one cluster
    atlas[1], atlas[2], atlas[4] = 7, 8, 9
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-10, 0, 5)
    first, second = cluster_report(map, 3.0, atlas, {7: "insula", 8: "putamen"}, affine)
    assert (first.voxels, first.volume, first.peak, first.at, first.mean) == (2, 24.0, 5.0, (2, 2, 2), 4.0)
    assert first.millimetres == (-6.0, 4.0, 11.0)
    assert first.regions == {"insula": 0.5, "putamen": 0.5}
    assert second.regions == {"outside": 0.5, "9": 0.5}
    assert [cluster.voxels for cluster in cluster_report(map, 4.0, atlas, least=2)] == [2]
    assert cluster_report(map, 6.0, atlas) == []


def test_streamed_windows_are_those_of_a_whole_run() -> None:
    torch.manual_seed(0)
    model = SwiFT(**SMALL, drop_rate=0.5).train()
    run = torch.randn(8, 8, 8, 11)
    starts = [0, 3, 6]
    found = list(stream_scores(model, run.unbind(-1), 4, 3))
    assert model.training
    model.eval()
    with torch.no_grad():
        clips = torch.stack([run[None, ..., start : start + 4] for start in starts])
        wanted = model(clips)
    assert [score.start for score in found] == starts
    torch.testing.assert_close(torch.stack([score.logits for score in found]), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[-1].mean, subject_scores(wanted[:, 0], ["a"] * 3)[1])
    assert next(iter(stream_scores(model, run.unbind(-1), 4, 3))).start == 0, "before the run has ended"
    assert list(stream_scores(model, run.unbind(-1)[:3], 4)) == []


def test_bad_input() -> None:
    map, atlas = torch.zeros(2, 2, 2), np.zeros((2, 2, 2), np.int64)
    for call, message in (
        (lambda: subject_maps(Linear(), [], least=0.4), "least: got 0.4"),
        (lambda: subject_maps(Linear(), [], every=0), "every: got 0"),
        (lambda: subject_maps(Linear(), [item(1.0, 2.0, "a", 0)]), "clips: got the target 2.0 of a"),
        (lambda: bootstrap_map([map]), "maps: got 1"),
        (lambda: bootstrap_map([map, map[0]]), "maps: got 2"),
        (lambda: bootstrap_map([map, map], level=1.0), "draws, level: got"),
        (lambda: cluster_report(map, 1.0, atlas[0]), "atlas: got the shape"),
        (lambda: cluster_report(map, 1.0, atlas * 0.5), "atlas: got float64"),
        (lambda: cluster_report(map, 1.0, atlas, affine=np.eye(3)), "affine: got"),
        (lambda: stream_scores(Linear(), [], 0), "length: got 0"),
        (lambda: list(stream_scores(Linear(), [map[0]], 1)), "frames: got the shape"),
        (lambda: list(stream_scores(Linear(), [torch.zeros(4, 4, 4), map], 2)), r"as before"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
