"""Masks, boxes and points from seeds, and the map of where scales and mirror images disagree."""

from __future__ import annotations

import pytest
import torch

from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.gated_swinrmt import GatedSwinRMT
from paperworks.swin.swtformer import (
    SWTformer,
    localize,
    seed_mask,
    seed_miou,
    seeds_to_points,
    swtformer_loss,
    uncertainty_map,
)


def squares() -> tuple[torch.Tensor, torch.Tensor]:
    """Class 0 in two squares of 64 and 16 pixels, class 2 in one of 30; class 1 has the largest map and no label."""
    maps = torch.zeros(4, 24, 32)
    maps[0] = 0.5
    maps[1, 2:10, 4:12] = 0.9
    maps[1, 18:22, 26:30] = 0.8
    maps[3, 14:20, 2:7] = 0.7
    maps[2] = 1.0
    return maps, torch.tensor([1, 0, 1])


def test_masks_are_the_largest_labelled_maps() -> None:
    maps, labels = squares()
    mask = seed_mask(maps, labels)
    assert mask.shape == (24, 32)
    assert {int(k): int((mask == k).sum()) for k in mask.unique()} == {0: 24 * 32 - 110, 1: 80, 3: 30}
    assert int((seed_mask(maps, labels, threshold=0.75) == 3).sum()) == 0
    assert bool((seed_mask(torch.full((2, 3, 3), 0.5), torch.ones(1)) == 0).all()), "a tie is background"
    score = seed_miou([maps], [mask], [labels])
    assert score.miou == 1, "the masks are those that are scored"


def test_every_connected_seed_gets_its_box_and_its_innermost_point() -> None:
    found = seeds_to_points(*squares(), least=0.01)
    assert [(one.label, one.area) for one in found] == [(0, 64), (0, 16), (2, 30)]
    assert [one.box.tolist() for one in found] == [[4, 2, 12, 10], [26, 18, 30, 22], [2, 14, 7, 20]]
    for one in found:
        assert one.point_labels.tolist() == [1]
        (x, y), (left, top, right, bottom) = one.points[0].tolist(), one.box.tolist()
        assert abs(x + 0.5 - (left + right) / 2) <= 0.5
        assert abs(y + 0.5 - (top + bottom) / 2) <= 0.5


def test_points_lie_where_they_say_and_apart() -> None:
    maps, labels = squares()
    mask = seed_mask(maps, labels)
    for one in seeds_to_points(maps, labels, points=3, negatives=2):
        assert one.point_labels.tolist() == [1, 1, 1, 0, 0]
        values = mask[one.points[:, 1], one.points[:, 0]]
        assert torch.equal(values == one.label + 1, one.point_labels == 1)
        assert len({tuple(p) for p in one.points.tolist()}) == 5


def test_small_parts_are_left_out_unless_a_class_has_no_other() -> None:
    maps, labels = squares()
    assert [one.area for one in seeds_to_points(maps, labels, least=0.05)] == [64, 30]
    assert [one.area for one in seeds_to_points(maps, labels, least=1.0)] == [64, 30]
    assert seeds_to_points(maps, labels, threshold=2.0) == []
    assert seeds_to_points(maps, torch.zeros(3)) == []
    [whole] = seeds_to_points(torch.stack([torch.zeros(4, 6), torch.ones(4, 6)]), torch.ones(1), negatives=1)
    assert whole.point_labels.tolist() == [1], "beside an object that fills the image there is no pixel"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: seed_mask(torch.rand(3, 4), torch.ones(2)), "maps"),
        (lambda: seed_mask(torch.rand(3, 4, 4), torch.ones(3)), "labels"),
        (lambda: seed_mask(torch.rand(3, 4, 4), torch.full((2,), 0.5)), "labels"),
        (lambda: seeds_to_points(torch.rand(3, 4, 4), torch.ones(2), points=0), "points"),
        (lambda: seeds_to_points(torch.rand(3, 4, 4), torch.ones(2), negatives=-1), "points, negatives"),
        (lambda: seeds_to_points(torch.rand(3, 4, 4), torch.ones(2), least=2), "points, negatives, least"),
    ],
)
def test_bad_input_names_the_argument(call, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        call()


def model(version: int) -> SWTformer:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        backbone = SwinClassifier(0, dim=8, depths=(1, 2, 1), num_heads=(1, 2, 4), window=4)
        return SWTformer(backbone, 3, version).train()


@pytest.mark.parametrize("version", [1, 2])
def test_uncertainty_is_the_entropy_of_the_votes(version: int) -> None:
    network, labels = model(version), torch.tensor([1, 0, 1])
    image = torch.randn(3, 40, 56, generator=torch.Generator().manual_seed(1))
    found = uncertainty_map(network, image, labels, scales=(1, 1.5))
    assert network.training
    assert found.shape == (40, 56)
    votes = []
    for scale in (1, 1.5):
        votes.append(seed_mask(localize(network, image, labels, (scale,), flip=False), labels))
        votes.append(seed_mask(localize(network, image.flip(-1), labels, (scale,), flip=False).flip(-1), labels))
    counts = torch.stack([(torch.stack(votes) == k).sum(0) for k in range(4)]) / 4
    wanted = -(counts * counts.clamp_min(1e-12).log()).sum(0) / torch.log(torch.tensor(3.0))
    # a resized batch of two may round otherwise than two of one: a few pixels at an edge change hands
    assert float(((found - wanted).abs() < 1e-5).double().mean()) > 0.99
    assert float(found.max()) <= 1


def test_no_disagreement_is_zero_and_one_view_is_refused() -> None:
    network, image = model(1), torch.rand(3, 32, 32)
    assert float(uncertainty_map(network, image, torch.tensor([1, 0, 0]), (1, 2), threshold=2.0).abs().max()) == 0
    with pytest.raises(ValueError, match=r"^scales"):
        uncertainty_map(network, image, torch.tensor([1, 0, 0]), (1,), flip=False)


def test_gated_swinrmt_is_a_backbone() -> None:
    backbone = GatedSwinRMT(
        "swat", num_classes=0, embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 4), window_size=4, mlp_ratios=(2, 2)
    )
    network = SWTformer(backbone, 3, side_channels=(4, 6)).eval()
    assert network.stride == 8
    image, labels = torch.randn(2, 3, 48, 32), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    out = network(image, labels)
    assert out.cam.shape == (2, 3, 6, 4)
    assert out.features.shape == (2, 10, 12, 8)
    torch.testing.assert_close(network.head(backbone.forward_features(image).movedim(-1, 1)), out.cam)
    swtformer_loss(network.train()(image, labels), labels)["total"].backward()
    assert all(p.grad is not None for name, p in backbone.named_parameters() if name.startswith("stages"))


@pytest.mark.parametrize("dtype", [torch.long, torch.float64])
def test_an_image_of_another_dtype_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"^image"):
        model(1)(torch.zeros(1, 3, 32, 32, dtype=dtype))
