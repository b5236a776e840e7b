"""Contrastive pre-training: the losses as formulas, their limits, augmentations against MONAI's, the training loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.swin.swift import (
    ClipAugment,
    ContrastiveHead,
    SubjectBatches,
    SwiFT,
    contrastive_loss,
    local_local_loss,
    nt_xent,
    pretrain,
)
from paperworks.swin.swift.augmentation import affine, gaussian_smooth
from paperworks.swin.swift.contrastive import rate


def draw(*shape: int, seed: int = 0, **options: object) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def nt_xent_by_hand(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    z = torch.cat([z1, z2])
    n, losses = len(z1), []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        logits = torch.stack([F.cosine_similarity(z[i], z[j], dim=0) for j in others]) / temperature
        losses.append(-logits.log_softmax(0)[others.index((i + n) % (2 * n))])
    return torch.stack(losses).mean()


@given(n=st.integers(1, 5), features=st.integers(1, 6), temperature=st.floats(0.05, 2), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_nt_xent_is_the_formula(n: int, features: int, temperature: float, seed: int) -> None:
    z1, z2 = draw(2, n, features, seed=seed, dtype=torch.float64).unbind()
    torch.testing.assert_close(nt_xent(z1, z2, temperature), nt_xent_by_hand(z1, z2, temperature))
    torch.testing.assert_close(nt_xent(3 * z1, z2, temperature), nt_xent(z1, z2, temperature), msg="of cosines")


def test_limits_of_nt_xent() -> None:
    same = torch.ones(4, 7)
    assert nt_xent(same, same).item() == pytest.approx(math.log(7), rel=1e-6)
    apart = torch.eye(4)
    assert nt_xent(apart, apart).item() == pytest.approx(math.log1p(6 * math.exp(-10)), rel=1e-3)
    assert nt_xent(draw(1, 5), draw(1, 5, seed=1)).item() == 0, "one pair has no negative"
    assert torch.autograd.gradcheck(nt_xent, tuple(draw(2, 3, 4, dtype=torch.float64).requires_grad_().unbind()))


def test_local_local_loss_is_nt_xent_a_subject() -> None:
    a, b = draw(2, 5, 2, 6, dtype=torch.float64).unbind()
    each = torch.stack([nt_xent(x, y, 0.2) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(local_local_loss(a, b, 0.2), each.mean())
    torch.testing.assert_close(local_local_loss(a, b, 0.2, reduction="sum"), each.sum())


def test_bad_embeddings() -> None:
    for call, message in (
        (lambda: nt_xent(draw(3, 4), draw(2, 4)), r"got the shapes \(3, 4\) and \(2, 4\)"),
        (lambda: nt_xent(draw(3), draw(3)), "wanted two equal ones"),
        (lambda: nt_xent(draw(0, 4), draw(0, 4)), "B > 0"),
        (lambda: nt_xent(draw(3, 4), draw(3, 4), 0.0), "temperature: got 0"),
        (lambda: local_local_loss(draw(3, 1, 4), draw(3, 1, 4)), "n_clips > 1"),
        (lambda: local_local_loss(draw(3, 2, 4), draw(3, 2, 4), reduction="max"), "reduction: got 'max'"),
        (lambda: ContrastiveHead(4)(draw(1, 4, 3)), "at least 2"),
        (lambda: ContrastiveHead(4)(draw(2, 5, 3)), r"wanted \(B, 4, ...\)"),
        (lambda: contrastive_loss(F.relu, F.relu, draw(2, 3), draw(2, 3), kind=4), "kind: got 4"),
        (lambda: contrastive_loss(F.relu, F.relu, draw(2, 3), draw(3, 3)), "second: got the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_head_gives_unit_vectors_of_normalised_projections() -> None:
    head, x = ContrastiveHead(6), draw(8, 6, 2, 2, 2, 3)
    assert sum(p.numel() for p in head.parameters()) == 6 * 128 + 2 * 128, "no bias of the projection"
    found = head(x)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(8))
    flat = x.flatten(2).mean(2) @ head.fc1.weight.t()
    wanted = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(found, F.normalize(wanted, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.eval()(x[:1]).norm(), torch.tensor(1.0))


def test_the_losses_see_the_clips_they_should() -> None:
    """With the identity as augmentation and as network, both losses of random clips are known."""
    first, second = draw(2, 4, 9, dtype=torch.float64).unbind()
    instance = nt_xent(first, second)
    clips = torch.stack([first, second], 1)
    parts = {1: instance, 2: local_local_loss(clips, clips), 3: instance + local_local_loss(clips, clips)}
    for kind, wanted in parts.items():
        found = contrastive_loss(lambda x: x, lambda x: x, first, second, kind=kind)
        torch.testing.assert_close(found, wanted)


def volume(seed: int = 0) -> torch.Tensor:
    smooth = F.avg_pool3d(draw(1, 1, 12, 10, 14, seed=seed), 3, 1, 1)
    return smooth[0, 0]


def test_all_frames_of_a_clip_get_one_map_and_the_input_stays() -> None:
    clip = volume().view(1, 1, 12, 10, 14, 1).expand(2, 1, 12, 10, 14, 5).contiguous()
    before = clip.clone()
    augment = ClipAugment(noise_p=1.0, smooth_p=1.0)
    found = augment(clip, torch.Generator().manual_seed(0))
    assert torch.equal(clip, before)
    assert torch.equal(found, found[..., :1].expand_as(found)), "frames that were equal are equal"
    assert not torch.allclose(found[0], found[1]), "clips are not"
    assert torch.equal(found, augment(clip, torch.Generator().manual_seed(0)))
    assert not torch.equal(found, augment(clip, torch.Generator().manual_seed(1)))


def test_without_amounts_it_is_the_identity() -> None:
    x = draw(2, 1, 6, 5, 4, 3)
    torch.testing.assert_close(ClipAugment(0, 0, 0, 0, 0)(x), x)
    torch.testing.assert_close(affine(x, torch.zeros(2, 3), torch.ones(2, 3)), x)
    assert ClipAugment()(x[:0]).shape == (0, 1, 6, 5, 4, 3)


def test_a_quarter_turn_turns_the_volume() -> None:
    x = draw(1, 1, 5, 6, 6, 2)
    found = affine(x, torch.tensor([[math.pi / 2, 0, 0]]), torch.ones(1, 3))
    torch.testing.assert_close(found, x.transpose(3, 4).flip(4), rtol=1e-3, atol=1e-4)


def test_affine_and_smoothing_are_those_of_monai() -> None:
    pytest.importorskip("monai", reason="the reference of the augmentations")
    from monai.networks.layers import GaussianFilter
    from monai.transforms import Affine

    x = volume()
    angles, scales = (0.15, -0.1, 0.05), (1.08, 0.93, 1.02)
    theirs = Affine(rotate_params=angles, scale_params=scales, mode="bilinear", padding_mode="border", image_only=True)
    wanted = torch.as_tensor(theirs(x.unsqueeze(0)))[0]
    found = affine(x.view(1, 1, *x.shape, 1), torch.tensor([angles]), torch.tensor([scales]))
    torch.testing.assert_close(found[0, 0, ..., 0], wanted, rtol=1e-4, atol=1e-5)
    sigmas = [0.4, 0.5, 0.2]
    smooth = GaussianFilter(3, sigmas)(x.view(1, 1, *x.shape))[0, 0]
    torch.testing.assert_close(gaussian_smooth(x.view(1, *x.shape, 1), sigmas)[0, ..., 0], smooth, rtol=1e-4, atol=1e-5)


def test_bad_augmentations() -> None:
    for options, message in (
        ({"degrees": -1.0}, "degrees: got -1"),
        ({"scale": 1.0}, "scale: got 1"),
        ({"noise_p": 1.5}, "noise_p: got 1.5"),
        ({"smooth_sigma": (0.5, 0.1)}, "smooth_sigma: got"),
    ):
        with pytest.raises(ValueError, match=message):
            ClipAugment(**options)
    with pytest.raises(ValueError, match=r"wanted \(B, C, H, W, D, T\)"):
        ClipAugment()(draw(1, 6, 6, 6, 2))
    with pytest.raises(TypeError, match="floating"):
        ClipAugment()(torch.zeros(1, 1, 2, 2, 2, 2, dtype=torch.int32))


def test_no_subject_twice_in_a_batch() -> None:
    subjects = ["a", "a", "b", "c", "c", "c", "d"]
    for drop in (True, False):
        batches = SubjectBatches(subjects, 2, torch.Generator().manual_seed(0), drop_last=drop)
        found = list(batches)
        assert len(found) == len(batches)
        assert all(len({subjects[i] for i in batch}) == len(batch) for batch in found)
        used = [i for batch in found for i in batch]
        assert len(set(used)) == len(used)
        assert drop or sorted(used) == list(range(7))
    assert len(SubjectBatches([], 2)) == len(list(SubjectBatches([], 2))) == 0


def test_pretraining_lowers_the_loss_and_keeps_no_frozen_part() -> None:
    """Clips that hold their subject as a pattern: the network learns to tell subjects apart."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = SwiFT((8, 8, 8, 4), 1, 8, (4, 4, 4, 1), (2, 2, 2, 2), depths=(1,), num_heads=(1,))
        head = ContrastiveHead(8, 16)
        pattern = draw(8, 1, 8, 8, 8, 1)
        pairs = [tuple(pattern + 0.3 * draw(8, 1, 8, 8, 8, 4, seed=i) for i in (2 * s, 2 * s + 1)) for s in range(4)]
        before = copy.deepcopy(model.state_dict())
        seen: list[int] = []
        losses = pretrain(
            model, head, pairs, augment=ClipAugment(degrees=2.0, scale=0.02), steps=24, lr=3e-3, kind=1,
            progress=lambda step, loss: seen.append(step),
        )  # fmt: skip
    assert len(losses) == 24
    assert seen == list(range(1, 25))
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(pretrain(model, head, [{"image": pairs[0][0], "other": pairs[0][1]}], augment=lambda x: x)) == 1
    with pytest.raises(ValueError, match="batches: got none"):
        pretrain(model, head, iter(()), augment=lambda x: x, steps=1)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate(i, 100, 0.05) for i in range(100)]
    assert rates.index(max(rates)) in (5, 4)
    assert max(rates) <= 1
    assert rates[0] > 0
    assert rates[-1] < 0.001
