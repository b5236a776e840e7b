from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data.images import ImageData, convert, load_images, resize


def made(labels: list[int], held_out: list[bool] | None = None, size: tuple[int, int] = (2, 2)) -> ImageData:
    """Images whose every pixel tells which one it is."""
    n = len(labels)
    images = (torch.arange(n, dtype=torch.float32) / max(n, 1)).view(n, 1, 1, 1).expand(n, 1, *size).contiguous()
    held = None if held_out is None else torch.tensor(held_out)
    return ImageData("made", images, torch.tensor(labels), [str(i) for i in range(max(labels) + 1)], held)


def which(data: ImageData, n: int) -> list[int]:
    return [round(v * n) for v in data.images[:, 0, 0, 0].tolist()]


LABELS = st.lists(st.integers(0, 4), min_size=4, max_size=60)


def test_digits_are_scikit_learns() -> None:
    data = load_images("digits")
    assert (data.name, len(data), data.num_classes, data.in_channels, data.image_size) == ("digits", 1797, 10, 1, 8)
    assert (data.images.dtype, data.labels.dtype) == (torch.float32, torch.int64)
    assert (float(data.images.min()), float(data.images.max())) == (0.0, 1.0)
    assert data.classes == [str(i) for i in range(10)]
    assert data.held_out is None
    # the published class counts of the test part of the UCI set
    assert torch.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_size_and_mode_apply_to_every_scheme() -> None:
    data = load_images("digits?size=16x12&mode=rgb")
    assert data.images.shape == (1797, 3, 16, 12)
    with pytest.raises(ValueError, match="wanted square ones"):
        _ = data.image_size
    with pytest.raises(ValueError, match=r"mode=blue; wanted mode=gray\|rgb"):
        load_images("digits?mode=blue")


@settings(max_examples=80, deadline=None)
@given(LABELS, st.integers(0, 2**31), st.floats(0.15, 0.85))
def test_split_is_disjoint_exhaustive_stratified_and_by_seed(labels: list[int], seed: int, fraction: float) -> None:
    data = made(labels)
    n = len(labels)
    train, test = data.split(seed, test_fraction=fraction)
    a, b = which(train, n), which(test, n)
    assert sorted(a + b) == list(range(n))
    assert abs(len(b) - fraction * n) <= 0.5
    for label, count in Counter(labels).items():
        assert abs(int((test.labels == label).sum()) - count * len(b) / n) < 1
    assert [labels[i] for i in a] == train.labels.tolist()
    again = data.split(seed, test_fraction=fraction)
    assert (which(again[0], n), which(again[1], n)) == (a, b)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 1000), st.data())
def test_split_to_sizes(labels: list[int], seed: int, draw: st.DataObject) -> None:
    n = len(labels)
    n_train = draw.draw(st.integers(1, n - 1))
    n_test = draw.draw(st.integers(1, n - n_train))
    train, test = made(labels).split(seed, sizes=(n_train, n_test))
    assert (len(train), len(test)) == (n_train, n_test)
    assert not set(which(train, n)) & set(which(test, n))
    for label, count in Counter(labels).items():
        assert abs(int((test.labels == label).sum()) - count * n_test / n) < 1
        assert abs(int((train.labels == label).sum()) - count * n_train / n) < 2


def test_seeds_differ_and_the_global_generator_is_left_alone() -> None:
    data = made([0, 1] * 50)
    state = torch.get_rng_state()
    splits = {tuple(sorted(which(data.split(seed)[1], 100))) for seed in range(10)}
    assert len(splits) == 10
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_is_tested_about_equally_often_over_seeds() -> None:
    data = made([0] * 12 + [1] * 8)
    counts = Counter(i for seed in range(200) for i in which(data.split(seed, test_fraction=0.25)[1], 20))
    # 50 expected, standard deviation about 6
    assert all(abs(counts[i] - 50) < 30 for i in range(20))


def test_a_published_split_is_used_unless_resplit() -> None:
    held = [i % 4 == 0 for i in range(40)]
    data = made([i % 2 for i in range(40)], held)
    for seed in (0, 1):
        train, test = data.split(seed, test_fraction=0.5)
        assert sorted(which(test, 40)) == [i for i in range(40) if held[i]]
        assert sorted(which(train, 40)) == [i for i in range(40) if not held[i]]
        assert train.held_out is None
    assert which(data.split(0)[1], 40) != which(data.split(1)[1], 40)  # the seed orders
    small_train, small_test = data.split(0, sizes=(12, 4))
    assert (len(small_train), len(small_test)) == (12, 4)
    assert all(held[i] for i in which(small_test, 40))
    assert not any(held[i] for i in which(small_train, 40))
    assert len(data.split(0, resplit=True, test_fraction=0.5)[1]) == 20
    with pytest.raises(ValueError, match="at most 30 and 10"):
        data.split(0, sizes=(30, 11))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_other_fractions(fraction: float) -> None:
    with pytest.raises(ValueError, match="test_fraction"):
        made([0, 1]).split(0, test_fraction=fraction)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (3, 2), (-1, 2)])
def test_split_refuses_sizes_that_are_not_there(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"got sizes {sizes[0]} "):
        made([0, 1, 0, 1]).split(0, sizes=sizes)


def test_split_refuses_an_empty_part() -> None:
    with pytest.raises(ValueError, match="0 \\(test\\)"):
        made([0, 1, 0]).split(0, test_fraction=0.1)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 1000), st.data())
def test_subset_is_stratified_and_by_seed(labels: list[int], seed: int, draw: st.DataObject) -> None:
    n = draw.draw(st.integers(1, len(labels)))
    data = made(labels)
    part = data.subset(n, seed)
    assert len(part) == n == len(set(which(part, len(labels))))
    for label, count in Counter(labels).items():
        assert abs(int((part.labels == label).sum()) - count * n / len(labels)) < 1
    assert which(part, len(labels)) == which(data.subset(n, seed), len(labels))
    assert part.classes == data.classes


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=4, max_size=40), st.integers(2, 40))
def test_subset_keeps_both_parts_of_a_published_split(held: list[bool], n: int) -> None:
    held[:2] = [True, False]
    n = min(n, len(held))
    part = made([i % 3 for i in range(len(held))], held).subset(n, 0)
    assert part.held_out is not None
    assert [held[i] for i in which(part, len(held))] == part.held_out.tolist()
    assert abs(int(part.held_out.sum()) - n * sum(held) / len(held)) <= 1


def test_subset_refuses_what_is_not_there() -> None:
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"n: got {n}"):
            made([0, 1, 0, 1]).subset(n, 0)


def test_resize_covers_and_cuts_the_centre() -> None:
    images = torch.zeros(1, 1, 4, 8)
    images[..., 2:6] = 1.0  # the middle square is white
    data = ImageData("x", images, torch.tensor([0]), ["a"])
    assert torch.equal(data.resize(4).images, torch.ones(1, 1, 4, 4))
    assert data.resize((2, 6)).images.shape == (1, 1, 2, 6)
    assert data.resize((4, 8)).images is images
    with pytest.raises(ValueError, match="size: got 0"):
        data.resize(0)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 4), st.floats(0, 1))
def test_resize_keeps_shape_range_and_constants(sizes: tuple[int, int, int, int], value: float) -> None:
    h, w, height, width = sizes
    flat = resize(torch.full((2, 3, h, w), value, dtype=torch.float32), height, width)
    assert flat.shape == (2, 3, height, width)
    torch.testing.assert_close(flat, torch.full_like(flat, value))
    noise = resize(torch.rand(300, 1, h, w, generator=torch.Generator().manual_seed(0)), height, width)
    assert float(noise.min()) >= 0
    assert float(noise.max()) <= 1


def test_halving_an_image_averages_it() -> None:
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    # a triangle filter of the double width keeps the mean up to its border
    assert abs(float(resize(images, 8, 8).mean() - images.mean())) < 0.02


def test_convert_gray_is_luma_and_rgb_repeats() -> None:
    images = torch.eye(3).view(3, 3, 1, 1)
    assert convert(images, "gray").flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    gray = torch.rand(2, 1, 3, 3)
    assert torch.equal(convert(gray, "rgb"), gray.expand(2, 3, 3, 3))
    torch.testing.assert_close(convert(convert(gray, "rgb"), "gray"), gray)
    assert convert(gray, "gray") is gray
    for mode, channels in (("blue", 3), ("gray", 4)):
        with pytest.raises(ValueError, match=f"got '{mode}' for {channels} channels"):
            convert(torch.zeros(1, channels, 1, 1), mode)


def test_image_data_checks_what_it_is_given() -> None:
    images, labels = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1])
    with pytest.raises(TypeError, match="float64"):
        ImageData("x", images.double(), labels, ["a", "b"])
    with pytest.raises(TypeError, match=r"int64 \(2,\)"):
        ImageData("x", images, labels[:2], ["a", "b"])
    with pytest.raises(ValueError, match="from 0 to 2, wanted"):
        ImageData("x", images + torch.tensor([0.0, 0, 2]).view(3, 1, 1, 1), labels, ["a", "b"])
    with pytest.raises(ValueError, match="nan"):
        ImageData("x", images * float("nan"), labels, ["a", "b"])
    with pytest.raises(ValueError, match="index into 1 classes"):
        ImageData("x", images, labels, ["a"])
    with pytest.raises(ValueError, match="at least one value"):
        ImageData("x", images[:0], labels[:0], ["a"])
    with pytest.raises(TypeError, match="held_out"):
        ImageData("x", images, labels, ["a", "b"], torch.tensor([True]))
    with pytest.raises(ValueError, match="one part only"):
        ImageData("x", images, labels, ["a", "b"], torch.zeros(3, dtype=torch.bool))


def test_image_data_copies_and_pickles() -> None:
    data = made([0, 1, 1])
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(other.images, data.images)
        assert other.classes == data.classes
