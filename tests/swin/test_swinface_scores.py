"""Scores of pairs, tasks and groups of people; temperatures; gates; the joint training."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.swin.swinface import (
    CosFaceHead,
    JointBatches,
    Part,
    SwinFace,
    TaskBatch,
    TaskGroup,
    calibration_error,
    embed,
    fit_joint,
    fit_temperatures,
    gate_report,
    pair_scores,
    predict,
    render_faces,
    subgroup_scores,
    task_scores,
    template_embeddings,
    training_groups,
    training_transform,
    verify_pairs,
)
from paperworks.swin.swinface.training import learning_rate
from paperworks.swin.swinface.verification import area_under_curve, best_threshold, true_accepts

# --- pairs ---


def angles(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings with these cosines, of any length."""
    a = torch.stack([torch.ones_like(cos), torch.zeros_like(cos)], 1)
    b = torch.stack([cos, (1 - cos**2).sqrt()], 1)
    return 3 * a, 0.5 * b


def test_pairs_that_can_be_told_apart() -> None:
    same = torch.tensor([True, False] * 20)
    cos = torch.where(same, 0.7, 0.1) + 0.05 * torch.rand(40, generator=torch.Generator().manual_seed(0))
    found = verify_pairs(*angles(cos), same)
    assert (found.accuracy, found.auc) == (1, 1)
    assert 0.15 < found.threshold < 0.7
    assert set(found.tar_at_far.values()) == {1.0}
    worst = verify_pairs(*angles(-cos), same)
    assert worst.auc == 0


def test_mirror_images_are_added() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(30, 4, generator=generator) for _ in range(4))
    same = torch.arange(30) % 3 == 0
    assert verify_pairs(a, b, same, flipped=(c, d)) == verify_pairs(a + c, b + d, same)


def small() -> SwinFace:
    torch.manual_seed(0)
    return SwinFace(
        (TaskGroup("age", {"young": 2, "age": 1}),), img_size=16, embed_dim=8, depths=(1, 1), num_heads=(1, 2),
        window_size=4, embedding_size=12,
    )  # fmt: skip


def test_embeddings_of_faces_and_their_mirror_images() -> None:
    model, faces = small(), torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    plain, mirrored = (embed(model, x.split(2), flip=False) for x in (faces, faces.flip(-1)))
    both = embed(model, faces.split(3))
    torch.testing.assert_close(both, plain + mirrored, atol=1e-5, rtol=1e-5)
    assert model.training
    with pytest.raises(ValueError, match="images: got no batch"):
        embed(model, [])


def test_templates_average_videos_and_add_media() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    templates = torch.tensor([7, 3, 7, 7, 3, 7])
    media = torch.tensor([1, 1, 2, 2, 1, 2])
    names, found = template_embeddings(x, templates, media)
    assert names.tolist() == [3, 7]
    seven = x[0] + x[[2, 3, 5]].mean(0)
    torch.testing.assert_close(found[1], F.normalize(seven.double(), dim=0))
    torch.testing.assert_close(found[0], F.normalize(x[[1, 4]].mean(0).double(), dim=0))
    weights = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    _, weighted = template_embeddings(x, templates, media, weights)
    torch.testing.assert_close(weighted, F.normalize(x[[1, 2]].double()))
    score = pair_scores(found, torch.tensor([[0, 1], [1, 1]]), chunk=1)
    torch.testing.assert_close(score, torch.stack([found[0] @ found[1], torch.ones(()).double()]))
    with pytest.raises(ValueError, match=r"embeddings, templates, media, weights: got the shapes \(6, 4\), \(5,\)"):
        template_embeddings(x, templates[:5], media)
    with pytest.raises(ValueError, match="embeddings, pairs: got the shapes"):
        pair_scores(found, torch.zeros(3, dtype=torch.long))


def test_a_task_of_one_number_starts_where_it_is_told() -> None:
    model, faces = small().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(faces)
        model.start_at("age", 33.5)
        after = model(faces)
    torch.testing.assert_close(after["age"], before["age"] + 33.5)
    assert torch.equal(after["young"], before["young"])
    with pytest.raises(ValueError, match="task: got 'young' of 2 outputs"):
        model.start_at("young", 1.0)
    with pytest.raises(ValueError, match="task: got 'iq', wanted one of young, age"):
        model.start_at("iq", 1.0)


def test_faces_to_be_recognised_are_mirrored_only() -> None:
    face = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    change = training_transform("recognition", 20, generator=generator)
    seen = {tuple(change(face)[0, 0].tolist()) for _ in range(20)}
    assert seen == {tuple((2 * row - 1).tolist()) for row in (face[0, 0], face[0, 0].flip(0))}
    one, two = (training_transform(size=20, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    changed = [one(face) for _ in range(20)]
    assert all(torch.equal(x, two(face)) for x in changed)
    assert len({tuple(x.flatten().tolist()) for x in changed}) > 10
    with pytest.raises(ValueError, match="part: got 'identity', wanted 'analysis' or 'recognition'"):
        training_transform("identity")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=20))
def test_threshold_and_area_against_all_there_are(pairs: list[tuple[int, bool]]) -> None:
    score, same = torch.tensor([float(s) for s, _ in pairs]).double(), torch.tensor([t for _, t in pairs])
    tried = [x / 2 for x in range(-13, 14)]
    best = max(int(((score >= t) == same).sum()) for t in tried)
    assert int(((score >= best_threshold(score, same)) == same).sum()) == best
    one, two = score[same].tolist(), score[~same].tolist()
    if one and two:
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in one for b in two]
        assert area_under_curve(score, same) == pytest.approx(sum(wins) / len(wins))


def test_true_accepts_keep_to_the_rate() -> None:
    score = torch.tensor([0.9, 0.8, 0.3, 0.85, 0.5, 0.2, 0.1]).double()
    same = torch.tensor([True, True, True, False, False, False, False])
    assert true_accepts(score, same, 0.0) == pytest.approx(1 / 3)
    assert true_accepts(score, same, 0.25) == pytest.approx(2 / 3)
    assert true_accepts(score, same, 1.0) == 1


def test_folds_do_not_choose_their_own_threshold() -> None:
    cos = torch.tensor([0.9, 0.1, 0.4, -0.5])  # the second half is shifted
    found = verify_pairs(*angles(cos), torch.tensor([True, False, True, False]), folds=2)
    assert found.accuracies == (1.0, 0.5) or found.accuracies == (0.5, 0.5)
    assert found.accuracy == sum(found.accuracies) / 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"folds": 1}, "folds: got 1 of 4 pairs"),
        ({"folds": 5}, "folds: got 5"),
        ({"same": torch.ones(4)}, "same: got 4 pairs of one person of 4"),
        ({"same": torch.ones(3)}, "emb_a, emb_b, same: got the shapes"),
        ({"flipped": (torch.zeros(4, 2), torch.zeros(3, 2))}, "flipped: got the shapes"),
    ],
)
def test_pairs_that_cannot_be_scored(change: dict, match: str) -> None:
    given_ = {"emb_a": torch.randn(4, 2), "emb_b": torch.randn(4, 2), "same": torch.tensor([1, 0, 1, 0]), "folds": 2}
    with pytest.raises(ValueError, match=match):
        verify_pairs(**{**given_, **change})


# --- tasks ---

TARGETS = {
    "gender": torch.tensor([0, 0, 1, -1]),
    "age": torch.tensor([10.0, 20.0, math.nan, 70.0]),
    "age_std": torch.tensor([2.0, math.nan, 2.0, 2.0]),
}
OUTPUTS = {
    "gender": torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [9.0, 0.0]]),
    "age": torch.tensor([[12.0], [20.0], [1.0], [70.0]]),
    "recognition": torch.zeros(4, 3),
}


def test_scores_are_of_what_is_known() -> None:
    found = task_scores(OUTPUTS, TARGETS)
    assert found.keys() == {"gender", "age"}
    assert (found["gender"]["n"], found["gender"]["accuracy"], found["gender"]["balanced"]) == (
        3,
        pytest.approx(2 / 3),
        0.75,
    )
    assert found["age"]["mae"] == pytest.approx(2 / 3)
    assert found["age"]["epsilon"] == pytest.approx((1 - math.exp(-0.5)) / 2)
    with pytest.raises(ValueError, match="targets: got 2 of 'age' for 4"):
        task_scores(OUTPUTS, {"age": torch.zeros(2)})


def test_scores_by_group_of_people() -> None:
    found = subgroup_scores(OUTPUTS, TARGETS)
    assert list(found) == ["gender=0", "gender=1", "age=0 to 17", "age=18 to 29", "age=60 and more"]
    assert found["gender=1"]["gender"]["accuracy"] == 1
    assert found["gender=0"]["gender"]["accuracy"] == 0.5
    assert found["age=60 and more"]["age"]["mae"] == 0
    with pytest.raises(ValueError, match="by: got 'mood'"):
        subgroup_scores(OUTPUTS, TARGETS, ("mood",))


def test_a_temperature_undoes_a_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20000, 4, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    for scale in (0.3, 5.0):
        found = fit_temperatures({"x": scale * logits, "age": target[:, None]}, {"x": target, "age": target})
        assert found == {"x": pytest.approx(scale, rel=0.05)}
        before = calibration_error(scale * logits, target)
        after = task_scores({"x": scale * logits}, {"x": target}, found)["x"]["calibration"]
        assert after < 0.02 < before


def test_calibration_by_hand() -> None:
    sure = torch.tensor([[20.0, -20.0]] * 4)
    assert calibration_error(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(ValueError, match="logits, target: got the shapes"):
        calibration_error(sure, torch.tensor([0]))


# --- the network: gates, prediction, joint training ---

GROUPS = (TaskGroup("age", {"age": 1}), TaskGroup("look", {"expression": 7, "eyeglasses": 2}))


def network() -> SwinFace:
    torch.manual_seed(0)
    return SwinFace(GROUPS, 16, 16, 2, 8, (1, 1), (1, 2), 4, 0.0, 0.0)


def test_gates_are_reported_by_level_and_channel() -> None:
    model, x = network().eval(), torch.randn(3, 3, 16, 16)
    found = gate_report(model.train(), x, top=2)
    assert model.training
    assert list(found) == ["age", "look"]
    for use in found.values():
        assert sum(use.levels) == pytest.approx(1)
        assert len(use.levels) == len(model._banks()[0].mlca.widths) == 2
        assert len(use.channels) == 2
        assert use.channels[0][2] >= use.channels[1][2]
    with torch.no_grad():
        model._banks()[0].mlca.fc2.bias[1, :8] = 9.0  # the look's first level wide open
    assert gate_report(model, x)["look"].levels[0] > 0.6
    assert gate_report(model, x)["look"].channels[0][0] == 0


def test_prediction_joins_batches() -> None:
    model, x = network().train(), torch.randn(5, 3, 16, 16)
    found = predict(model, x.split(2), ["age"])
    assert model.training
    torch.testing.assert_close(found["age"], model.eval()(x)["age"].detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="images: got no batch"):
        predict(model, [])


class Few:
    """Items of drawn faces with some of their tasks."""

    def __init__(self, n: int, tasks: tuple[str, ...], seed: int) -> None:
        self.faces = render_faces(n, 16, torch.Generator().manual_seed(seed), identities=4)
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int):
        return self.faces.images[index] * 2 - 1, {t: self.faces.targets[t][index] for t in self.tasks}


def test_batches_join_parts() -> None:
    ages, looks, more = Few(6, ("age",), 0), Few(5, ("expression", "eyeglasses"), 1), Few(3, ("age", "eyeglasses"), 2)
    joined = JointBatches([Part([ages, more], 4, (0.0, 1.0)), Part([looks], 5)], 3, torch.Generator().manual_seed(0))
    assert len(joined) == len(list(joined)) == 3
    images, batch = next(iter(joined))
    assert images.shape == (9, 3, 16, 16)
    assert batch.keys() == {"age", "expression", "eyeglasses"}
    assert batch["age"].rows.tolist() == [0, 1, 2, 3]
    assert batch["eyeglasses"].rows.tolist() == list(range(9))
    assert batch["expression"].rows.tolist() == [4, 5, 6, 7, 8]
    assert sorted(batch["expression"].target.tolist()) == sorted(looks.faces.targets["expression"].tolist()), (
        "each once"
    )
    assert set(batch["age"].target.tolist()) <= set(more.faces.targets["age"].tolist())
    for wrong in (lambda: Part([], 3), lambda: Part([ages], 0), lambda: Part([ages], 2, (1.0, 2.0))):
        with pytest.raises(ValueError, match=r"datasets|shares"):
            wrong()
    with pytest.raises(ValueError, match="parts, steps"):
        JointBatches([], 1)


def test_groups_of_parameters() -> None:
    model, head = network(), CosFaceHead(16, 4)
    groups = training_groups(model, head, 1e-3, 0.1, 0.05)
    assert sorted((g["lr"], g["weight_decay"]) for g in groups) == [
        (1e-4, 0.0),
        (1e-4, 0.05),
        (1e-3, 0.0),
        (1e-3, 0.05),
    ]
    taken = [id(p) for g in groups for p in g["params"]]
    assert sorted(taken) == sorted(id(p) for m in (model, head) for p in m.parameters())
    plain = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in plain}
    assert {n for n in names if n.endswith(("bias", "bias_table"))}
    assert not {n for n in names if n.endswith(("convs.0.weight", "subnet1.weight"))}
    model.add_task(TaskGroup("new", {"new": 2}))
    assert sum(p.numel() for g in training_groups(model) for p in g["params"]) == sum(
        p.numel() for p in model._banks()[1].parameters()
    )


def test_rates() -> None:
    rates = [learning_rate(s, 100, 10) for s in range(101)]
    assert rates[0] == 1e-3
    assert rates[10] == max(rates) == 1
    assert rates[100] == pytest.approx(0.01)
    assert rates[5] == pytest.approx(0.5005)


def test_joint_training_learns_and_repeats() -> None:
    looks, people = Few(16, ("age", "eyeglasses"), 0), Few(16, ("identity",), 3)

    def run(last: int) -> tuple[list[float], list[dict[str, float]]]:
        model = network()
        torch.manual_seed(1)
        head = CosFaceHead(16, 4, 0.75, scale=8.0, margin=0.1)
        joined = JointBatches([Part([looks], 8), Part([people], 8)], 24, torch.Generator().manual_seed(0))
        said: list[dict[str, float]] = []
        losses = fit_joint(
            model, joined, head=head, lr=5e-3, backbone_scale=1.0, weights={"age": 0.001},
            generator=torch.Generator().manual_seed(0),
            callback=lambda step, parts: said.append(parts) or step == last,
        )  # fmt: skip
        return losses, said

    losses, said = run(23)
    assert len(losses) == 24
    assert said[0].keys() == {"age", "eyeglasses", "identity", "total"}
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert run(2)[0] == losses[:3], "a callback that says True ends the training"


def test_a_step_is_that_of_adamw_on_the_sum() -> None:
    model, other = network(), network()
    images = torch.randn(4, 3, 16, 16)
    batch = {"eyeglasses": TaskBatch(slice(0, 4), torch.tensor([0, 1, 1, 0]))}
    [loss] = fit_joint(model, [(images, batch)], steps=1, warmup=0.0, lr=1e-2, backbone_scale=1.0, clip=1e9)
    optimizer = torch.optim.AdamW(training_groups(other, None, 1e-2, 1.0))
    expected = F.cross_entropy(other.train()(images)["eyeglasses"], batch["eyeglasses"].target)
    expected.backward()
    optimizer.step()
    assert loss == pytest.approx(float(expected.detach()))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
