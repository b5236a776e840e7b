"""F1 by class and its mean, beside scikit-learn, and bootstrap intervals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from paperworks.swin.swin_se_fer import (
    f1_intervals,
    macro_f1,
    per_class_f1,
)
from paperworks.swin.swin_se_fer.evaluation import confusion


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), classes=st.integers(5, 7)
)
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]], classes: int) -> None:
    pred, target = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = f1_score(target, pred, labels=range(classes), average="macro", zero_division=0)
    assert macro_f1(pred, target, classes) == pytest.approx(expected, abs=1e-12)
    by_class = f1_score(target, pred, labels=range(classes), average=None, zero_division=0)
    torch.testing.assert_close(per_class_f1(pred, target, classes), torch.tensor(by_class))
    assert macro_f1(torch.nn.functional.one_hot(pred, classes).float(), target, classes) == pytest.approx(expected)


def test_f1_of_nothing_and_of_what_does_not_fit() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert macro_f1(none, none, 3) == 0
    assert int(confusion(none, none, 3).sum()) == 0
    with pytest.raises(ValueError, match="wanted 0 to 2"):
        macro_f1(torch.tensor([3]), torch.tensor([0]), 3)
    with pytest.raises(ValueError, match="num_classes=3"):
        macro_f1(torch.zeros(2, 4), torch.tensor([0, 1]), 3)
    with pytest.raises(ValueError, match="shapes"):
        macro_f1(torch.tensor([0, 1]), torch.tensor([0]), 3)
    with pytest.raises(TypeError, match="whole numbers"):
        macro_f1(torch.tensor([0.0]), torch.tensor([0]), 3)


def test_bootstrap_intervals_hold_the_value_and_shrink() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (300,), generator=generator)
    pred = torch.where(torch.rand(300, generator=generator) < 0.7, target, (target + 1) % 3)
    by_class, (low, high) = f1_intervals(pred, target, 3, generator)
    assert low < macro_f1(pred, target, 3) < high
    f1 = per_class_f1(pred, target, 3)
    assert bool(((by_class[:, 0] < f1) & (f1 < by_class[:, 1])).all())
    _, (few_low, few_high) = f1_intervals(pred[:50], target[:50], 3, generator)
    assert few_high - few_low > 1.5 * (high - low)
    _, (same_low, same_high) = f1_intervals(target, target, 3, generator)
    assert same_low == same_high == 1
    with pytest.raises(ValueError, match="level"):
        f1_intervals(pred, target, 3, generator, level=1.0)
    with pytest.raises(ValueError, match="no item"):
        f1_intervals(pred[:0], target[:0], 3, generator)
