"""Seed scores against counts by hand, and average precision against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.swin.swtformer import multilabel_map, seed_miou


def by_hand(predicted: list[np.ndarray], masks: list[torch.Tensor], classes: int) -> np.ndarray:
    p = np.concatenate([one.ravel() for one in predicted])
    t = np.concatenate([mask.numpy().ravel() for mask in masks])
    p, t = p[t != 255], t[t != 255]
    return np.array(
        [
            ((p == k) & (t == k)).sum() / max(1, ((p == k) | (t == k)).sum()) if ((p == k) | (t == k)).any() else np.nan
            for k in range(classes)
        ]
    )


def example(seed: int):
    g = torch.Generator().manual_seed(seed)
    sizes = [(4, 5), (3, 3), (6, 2)]
    maps = [torch.rand(4, *size, generator=g) for size in sizes]
    labels = [torch.rand(3, generator=g) < 0.5 for _ in sizes]
    masks = [torch.randint(0, 3, size, generator=g) for size in sizes]
    masks[0][0, 0] = 255
    return maps, masks, labels


def kept(maps: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return torch.cat([maps[:1], maps[1:].masked_fill(~labels[:, None, None], -1)]).numpy()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_counts_are_pooled_over_the_set(seed: int) -> None:
    maps, masks, labels = example(seed)
    found = seed_miou(maps, masks, labels)
    wanted = by_hand([kept(m, y).argmax(0) for m, y in zip(maps, labels, strict=True)], masks, 4)
    np.testing.assert_allclose(found.per_class.numpy(), wanted)
    assert found.miou == pytest.approx(np.nanmean(wanted))
    assert found.best_threshold is None


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_best_constant_is_that_of_a_search(seed: int) -> None:
    maps, masks, labels = example(seed)
    thresholds = [0.0, 0.35, 0.5, 0.8, 1.0]
    found = seed_miou(maps, masks, labels, thresholds)
    scores = []
    for t in thresholds:
        predicted = []
        for m, y in zip(maps, labels, strict=True):
            one = kept(m, y)
            one[0] = t
            predicted.append(one.argmax(0))
        scores.append(np.nanmean(by_hand(predicted, masks, 4)))
    assert found.miou == pytest.approx(max(scores))
    assert found.best_threshold == thresholds[int(np.argmax(scores))]


def test_a_perfect_map_and_a_class_that_is_nowhere() -> None:
    mask = torch.tensor([[0, 1], [1, 255]])
    maps = torch.nn.functional.one_hot(mask.clamp(max=1), 3).permute(2, 0, 1).float()
    found = seed_miou([maps], [mask], [torch.tensor([1, 0])])
    assert found.miou == 1
    assert math.isnan(float(found.per_class[2]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m, t, y: (m[:1], t, y), "maps"),
        (lambda m, t, y: ([], [], []), "maps"),
        (lambda m, t, y: ([one[:, :1] for one in m], t, y), "maps"),
        (lambda m, t, y: (m, [one + 9 for one in t], y), "masks"),
        (lambda m, t, y: (m, t, [one[:2] for one in y]), "labels"),
    ],
)
def test_bad_input_is_named(change, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        seed_miou(*change(*example(0)))
    with pytest.raises(ValueError, match=r"^thresholds"):
        seed_miou(*example(0), thresholds=())


@given(st.integers(0, 10_000), st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_average_precision_is_scikit_learns_with_ties(seed: int, levels: int) -> None:
    from sklearn.metrics import average_precision_score

    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (20, 4), generator=g).float()
    labels = (torch.rand(20, 4, generator=g) < 0.4).float()
    labels[0] = 1
    labels[:, 3] = 0
    wanted = average_precision_score(labels[:, :3].numpy(), scores[:, :3].numpy())
    assert multilabel_map(scores, labels) == pytest.approx(wanted)


def test_average_precision_wants_a_positive() -> None:
    with pytest.raises(ValueError, match=r"^labels"):
        multilabel_map(torch.rand(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"^labels"):
        multilabel_map(torch.rand(3, 2), torch.zeros(2, 3))
