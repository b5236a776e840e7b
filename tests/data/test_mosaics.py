"""Digit mosaics: tags and masks agree, digits do not overlap, the two parts share nothing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("skimage", reason="its pictures")

from paperworks.data.mosaics import _digits, _places, _uniform, digit_mosaics


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("held_out", [False, True])
def test_tags_are_the_digits_of_the_mask(held_out: bool) -> None:
    found = digit_mosaics(20, 64, seeded(), held_out=held_out)
    assert found.images.shape == (20, 3, 64, 64)
    assert len(found) == 20
    torch.testing.assert_close(found.images.mean((1, 2, 3)), torch.zeros(20), atol=1e-4, rtol=0)
    for mask, labels in zip(found.masks, found.labels, strict=True):
        seen = torch.bincount(mask.flatten(), minlength=11)[1:] > 0
        assert torch.equal(seen, labels.bool())
        assert 1 <= int(seen.sum()) <= 3


def test_a_seed_gives_the_same_mosaics() -> None:
    first, again, other = (digit_mosaics(4, 48, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, other.images)


def test_digits_of_the_two_parts_are_disjoint() -> None:
    (train, labels), (test, test_labels) = _digits(False), _digits(True)
    assert len(train) + len(test) == 1797
    assert set(labels.tolist()) == set(test_labels.tolist()) == set(range(10))
    distances = torch.cdist(train.flatten(1), test.flatten(1))
    assert float(distances.min()) > 0


def test_squares_do_not_overlap() -> None:
    for seed in range(20):
        canvas = torch.zeros(64, 64)
        for top, left, side in _places(64, [28, 24, 20], _uniform(seeded(seed))):
            canvas[top : top + side, left : left + side] += 1
        assert float(canvas.max()) == 1


@pytest.mark.parametrize("options", [{"n": 0}, {"most": 0}, {"size": 400}, {"size": 10}, {"sides": (0.5, 0.3)}])
def test_bad_numbers_are_refused(options) -> None:
    given = {"n": 2, "size": 64, **options}
    with pytest.raises(ValueError, match="got"):
        digit_mosaics(given.pop("n"), given.pop("size"), seeded(), **given)


def test_chosen_digits_lighter_on_a_flat_ground() -> None:
    found = digit_mosaics(10, 32, seeded(), digits=(3, 7), signs=(1,), texture=0.0, contrast=(0.5, 0.5))
    assert found.labels.shape == (10, 2)
    assert int(found.masks.max()) <= 2
    for image, mask in zip(found.images[:, 0], found.masks, strict=True):
        assert float(image[mask > 0].mean()) > float(image[mask == 0].mean()) + 1
    with pytest.raises(ValueError, match=r"^digits"):
        digit_mosaics(2, 32, seeded(), digits=(3, 3))
