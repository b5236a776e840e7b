"""Losses of SwinFace against their formulas, their limits, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.swin.swinface import CosFaceHead, TaskBatch, age_loss, cosface_logits, epsilon_error, multitask_loss

# --- CosFace ---


def test_margin_in_the_own_column_alone() -> None:
    cos = torch.tensor([[0.5, -0.2], [0.1, 0.9], [0.3, 0.4]], requires_grad=True)
    found = cosface_logits(cos, torch.tensor([0, 1, -1]), 10.0, 0.3)
    torch.testing.assert_close(found, torch.tensor([[2.0, -2.0], [1.0, 6.0], [3.0, 4.0]]))
    (slope,) = torch.autograd.grad(found.sum(), cos)
    assert torch.equal(slope, torch.full_like(cos, 10.0))
    assert torch.equal(cos.detach(), torch.tensor([[0.5, -0.2], [0.1, 0.9], [0.3, 0.4]])), "left as it was"


def test_without_a_margin_it_is_a_softmax_of_cosines() -> None:
    cos = torch.rand(4, 5)
    assert torch.equal(cosface_logits(cos, torch.arange(4), 7.0, 0.0), 7.0 * cos)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([0, 2]), "labels: got 0 to 2, wanted 0 to 1"),
        (torch.tensor([-2, 0]), "labels: got -2 to 0"),
        (torch.tensor([0.0, 1.0]), r"labels: got the shape \(2,\) and torch.float32"),
        (torch.tensor([0]), r"labels: got the shape \(1,\)"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        cosface_logits(torch.zeros(2, 2), labels)


def test_all_classes_at_full_rate() -> None:
    torch.manual_seed(0)
    head = CosFaceHead(8, 6)
    x, labels = 5 * torch.randn(4, 8), torch.tensor([0, 5, 2, -1])
    logits, columns = head(x, labels)
    assert torch.equal(columns, labels)
    torch.testing.assert_close(logits, cosface_logits(F.normalize(x) @ F.normalize(head.weight).T, labels))
    torch.testing.assert_close(head(3 * x, labels)[0], logits, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 12), st.integers(0, 5))
def test_a_sample_has_all_own_classes(classes: int, rate: float, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = CosFaceHead(4, classes, rate)
    x, labels = torch.randn(batch, 4, generator=generator), torch.randint(-1, classes, (batch,), generator=generator)
    logits, columns = head(x, labels, torch.Generator().manual_seed(seed))
    own = labels[labels >= 0].unique()
    assert logits.shape == (batch, max(len(own), round(rate * classes), 1))
    whole = CosFaceHead(4, classes)
    whole.load_state_dict(head.state_dict())
    full, _ = whole(x, labels)
    known = labels >= 0
    assert torch.equal(columns < 0, ~known)
    rows = torch.arange(batch)[known]
    torch.testing.assert_close(logits[rows, columns[known]], full[rows, labels[known]])
    again, _ = head(x, labels, torch.Generator().manual_seed(seed))
    assert torch.equal(again, logits)


def test_only_sampled_classes_get_a_gradient() -> None:
    torch.manual_seed(0)
    head = CosFaceHead(4, 50, 0.2)
    logits, columns = head(torch.randn(3, 4), torch.tensor([4, 4, 9]), torch.Generator().manual_seed(1))
    F.cross_entropy(logits, columns).backward()
    moved = head.weight.grad.abs().sum(1) > 0
    assert int(moved.sum()) == 10
    assert bool(moved[4] & moved[9])


def test_head_refuses() -> None:
    for rate in (0, 1.5):
        with pytest.raises(ValueError, match=f"sample_rate: got {rate}"):
            CosFaceHead(4, 5, rate)
    with pytest.raises(ValueError, match="embedding_size, num_classes: got 0 and 5"):
        CosFaceHead(0, 5)
    with pytest.raises(ValueError, match=r"embeddings: got the shape \(2, 3\), wanted \(B, 4\)"):
        CosFaceHead(4, 5)(torch.zeros(2, 3), torch.zeros(2).long())


# --- age ---


def test_limits_of_the_age_loss() -> None:
    pred, target = torch.tensor([20.0, 30.0, 47.0]), torch.tensor([23.0, 30.0, 40.0])
    assert float(age_loss(pred, target, 0)) == pytest.approx((9 + 0 + 49) / 6)
    score = epsilon_error(pred, target, torch.full((3,), 3.0))
    assert float(age_loss(pred, target, 1)) == pytest.approx(score)
    assert float(age_loss(pred, target, 0.25)) == pytest.approx(0.75 * 58 / 6 + 0.25 * score)


@given(st.floats(-200, 200))
def test_slope_is_bounded_at_the_end(d: float) -> None:
    pred = torch.tensor([d], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(age_loss(pred, torch.zeros(1, dtype=torch.float64), 1.0), pred)
    assert abs(float(slope)) <= math.exp(-0.5) / 3 + 1e-12


def test_ages_that_are_not_known_count_nothing() -> None:
    pred = torch.tensor([[20.0], [30.0]], requires_grad=True)
    loss = age_loss(pred, torch.tensor([math.nan, 34.0]), 0.0)
    assert float(loss) == 8
    (slope,) = torch.autograd.grad(loss, pred)
    assert slope.flatten().tolist() == [0, -4]
    none = age_loss(pred, torch.full((2,), math.nan), 0.5)
    assert float(none) == 0
    assert torch.equal(torch.autograd.grad(none, pred)[0], torch.zeros(2, 1))


def test_columns_do_not_broadcast_and_halves_are_widened() -> None:
    pred, target = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0])
    assert float(age_loss(pred, target, 0.3)) == 0
    assert age_loss(pred.half(), target.half(), 0.3).dtype == torch.float32
    far = age_loss(torch.tensor([400.0]).half(), torch.tensor([0.0]).half(), 0.0)
    assert float(far) == 80000, "more than float16 holds"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((torch.zeros(2), torch.zeros(2), 1.1), "progress: got 1.1"),
        ((torch.zeros(2), torch.zeros(3), 0.5), r"target: got the shape \(3,\) for \(2,\)"),
        ((torch.zeros(2, 2), torch.zeros(4), 0.5), "target: got the shape"),
        ((torch.zeros(2), torch.zeros(2), 0.5, 0.0), "sigma: got 0"),
    ],
)
def test_age_loss_refuses(arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        age_loss(*arguments)


def test_epsilon_error() -> None:
    mean, std = torch.tensor([20.0, 40.0]), torch.tensor([2.0, 5.0])
    assert epsilon_error(mean, mean, std) == 0
    assert epsilon_error(mean + std, mean, std) == pytest.approx(1 - math.exp(-0.5))
    assert epsilon_error(mean[:, None] + 1000, mean, std) == 1
    with pytest.raises(ValueError, match="std: got 0"):
        epsilon_error(mean, mean, torch.zeros(2))
    with pytest.raises(ValueError, match="mean, std: got 2 and 2 for 0 ages"):
        epsilon_error(torch.zeros(0), mean, std)


# --- all together ---


def outputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"age": 1, "gender": 2, "expression": 7}
    return {task: torch.randn(6, n, generator=generator).requires_grad_() for task, n in sizes.items()}


def test_each_loss_sees_its_rows() -> None:
    found, sex = outputs(), torch.tensor([0, 1, -1, 1])
    batch = {
        "age": TaskBatch(slice(0, 2), torch.tensor([30.0, 40.0])),
        "gender": TaskBatch(torch.tensor([0, 1, 4, 5]), sex),
        "expression": (slice(4, 6), torch.tensor([6, 0])),
    }
    losses = multitask_loss(found, batch, 0.4, {"age": 0.01})
    torch.testing.assert_close(losses["age"], age_loss(found["age"][:2], batch["age"].target, 0.4))
    known = F.cross_entropy(found["gender"][[0, 1, 5]], torch.tensor([0, 1, 1]))
    torch.testing.assert_close(losses["gender"], known)
    torch.testing.assert_close(losses["expression"], F.cross_entropy(found["expression"][4:], torch.tensor([6, 0])))
    total = 0.01 * losses["age"] + losses["gender"] + losses["expression"]
    torch.testing.assert_close(losses["total"], total)
    losses["total"].backward()
    assert torch.equal(found["gender"].grad.abs().sum(1) > 0, torch.tensor([True, True, False, False, False, True]))
    assert torch.equal(found["expression"].grad.abs().sum(1) > 0, torch.tensor([False] * 4 + [True] * 2))


def test_rows_may_be_a_mask_and_nothing_known_is_zero() -> None:
    mask = torch.tensor([True, False, False, True, False, False])
    losses = multitask_loss(outputs(), {"gender": TaskBatch(mask, torch.tensor([-1, -1]))}, 0.0)
    assert float(losses["gender"]) == float(losses["total"]) == 0


@pytest.mark.parametrize(
    ("batch", "weights", "match"),
    [
        (
            {"mood": (slice(0, 1), torch.tensor([0]))},
            None,
            r"batch: got the tasks \['mood'\], wanted one or more of age",
        ),
        ({}, None, r"batch: got the tasks \[\]"),
        ({"gender": (slice(0, 2), torch.tensor([0]))}, None, "got 1 targets of 'gender' for 2 rows"),
        ({"gender": (slice(0, 1), torch.tensor([2]))}, None, "target of 'gender': got 2 to 2, wanted 0 to 1"),
        ({"gender": (slice(0, 1), torch.tensor([1]))}, {"age": 2.0}, r"weights: got \['age'\]"),
    ],
)
def test_batches_that_do_not_fit(batch: dict, weights: dict | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        multitask_loss(outputs(), batch, 0.5, weights)
