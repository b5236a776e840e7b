"""SwinFace's network: published counts, attention over levels, branches in one pass, names of weights, added tasks."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.swinface import (
    FACE_TASK_GROUPS,
    SwinFace,
    TaskGroup,
    task_name,
)

SMALL = {
    "img_size": 32, "embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 2, 4), "window_size": 4,
    "embedding_size": 32, "subnet_dropout": 0.0, "drop_path_rate": 0.0,
}  # fmt: skip
GROUPS = (TaskGroup("age", {"age": 1, "young": 2}), TaskGroup("look", {"expression": 7}), TaskGroup("x", {"hat": 2}))


def small(seed: int = 0, **changed) -> SwinFace:
    torch.manual_seed(seed)
    model = SwinFace(GROUPS, **{**SMALL, **changed})
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                value.add_(0.2 * torch.rand_like(value)) if name.endswith("var") else value.add_(
                    0.1 * torch.randn_like(value)
                )
    return model.eval()


def faces(n: int = 3, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# --- the published network ---


def test_tasks_of_the_published_network() -> None:
    assert len(FACE_TASK_GROUPS) == 11
    names = [task for group in FACE_TASK_GROUPS for task in group.outputs]
    assert len(set(names)) == 42
    assert names[:5] == ["gender", "age", "young", "expression", "smiling"]
    assert names[-2:] == ["wearing_necklace", "wearing_necktie"]
    counts = [n for group in FACE_TASK_GROUPS for n in group.outputs.values()]
    assert sorted(counts) == [1] + [2] * 40 + [7]
    assert [len(group.outputs) for group in FACE_TASK_GROUPS] == [1, 2, 2, 6, 10, 5, 2, 4, 6, 2, 2]


def test_task_names() -> None:
    assert task_name("Five O'Clock Shadow") == task_name("5_o_Clock_Shadow") == "five_o_clock_shadow"
    assert task_name("Male") == task_name("Gender") == "gender"
    assert task_name("Mouth_Slightly_Open") == "mouth_slightly_open"


def test_shapes_at_full_size() -> None:
    with torch.device("meta"):
        model, image = SwinFace().eval(), torch.empty(2, 3, 112, 112)
    assert count_parameters(model) == 67_415_538
    assert [tuple(x.shape[1:]) for x in model.levels(image)] == [(192, 28, 28), (384, 14, 14), (768, 7, 7), (768, 7, 7)]
    assert model.pyramid(image).shape == (2, 2112, 7, 7)
    found = model(image)
    assert list(found) == list(model.tasks)
    assert found["recognition"].shape == (2, 512)
    assert (found["age"].shape, found["expression"].shape, found["goatee"].shape) == ((2, 1), (2, 7), (2, 2))
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm1d)} == {2e-5}


def test_it_plugs_onto_another_pyramid() -> None:
    class Pyramid(nn.Module):
        channels = (8, 12)

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 12, 2, 2)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            fine = self.first(x)
            return [fine, self.second(fine)]

    model = SwinFace(GROUPS, 16, backbone=Pyramid()).eval()
    assert model(faces(2, 40))["recognition"].shape == (2, 16)
    assert model.pyramid(faces(2, 40)).shape == (2, 20, 5, 5)
    with pytest.raises(ValueError, match="backbone: got Identity"):
        SwinFace(GROUPS, backbone=nn.Identity())


def test_the_subnets_and_heads_are_layers_in_turn() -> None:
    model, x = small(), faces()
    bank = model._banks()[0]
    y = model.mlca("hat")(model.pyramid(x))
    for layer in (bank.subnet1, bank.subnet2):
        y = F.relu(F.linear(y, layer.weight[2], layer.bias[2]))
    torch.testing.assert_close(bank.heads[2](y), model(x)["hat"], rtol=1e-4, atol=1e-5)


# --- answers for some tasks ---


def test_some_tasks_run_only_what_they_need() -> None:
    model, x = small(), faces()
    whole = model(x)
    for tasks in (["expression"], ["hat", "age"], ["recognition"], ["young", "recognition"]):
        some = model(x, tasks)
        assert set(some) == set(tasks)
        for task in tasks:
            torch.testing.assert_close(some[task], whole[task], rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        big, image = SwinFace().eval(), torch.empty(1, 3, 112, 112)
    macs = [
        count_multiply_adds(big, image, tasks=t).macs for t in (["recognition"], ["expression"], ["expression", "age"])
    ]
    branch = 2_973_888 * 49 + 2 * 2 * 512 * 32 + 2 * 512 * 512
    embedding = 768 * 768 + 768 * 512
    assert macs[1] == macs[0] - embedding + branch + 512 * 9
    assert macs[2] - macs[1] == branch + 512 * 3


def test_unknown_tasks_are_listed() -> None:
    model = small()
    for wrong in (["mood"], [], "age"):
        with pytest.raises(ValueError, match=r"tasks: got .*wanted some of recognition, age, young, expression, hat"):
            model(faces(), wrong)


def test_a_gate_for_every_group() -> None:
    model, x = small(), faces()
    gates = model.gates(x)
    assert list(gates) == ["age", "look", "x"]
    torch.testing.assert_close(gates["look"], model.mlca("expression").gate(model.pyramid(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [28, 40, 0])
def test_sizes_that_do_not_fit(size: int) -> None:
    if size % 8:
        with pytest.raises(ValueError, match=f"img_size: got {size}, wanted a multiple of patch_size 2"):
            small(img_size=size)
    with pytest.raises(ValueError, match=r"x: got the shape .*wanted \(B, 3, 32, 32\)"):
        small()(faces(1, size))


@pytest.mark.parametrize(
    "groups",
    [
        (),
        (GROUPS[0], GROUPS[0]),
        (TaskGroup("a", {"x": 2}), TaskGroup("b", {"x": 2})),
        (TaskGroup("a", {"recognition": 2}),),
    ],
)
def test_groups_that_do_not_fit(groups) -> None:
    with pytest.raises(ValueError, match="groups: got"):
        SwinFace(groups, **SMALL)


def test_a_group_has_outputs() -> None:
    with pytest.raises(ValueError, match="outputs: got none"):
        TaskGroup("empty", {})
    with pytest.raises(ValueError, match="outputs: got 0 for 'x'"):
        TaskGroup("wrong", {"x": 0})


def test_no_face_is_an_empty_answer() -> None:
    found = small()(faces(0))
    assert {task: tuple(x.shape) for task, x in found.items()} == {
        "recognition": (0, 32), "age": (0, 1), "young": (0, 2), "expression": (0, 7), "hat": (0, 2),
    }  # fmt: skip


def test_it_is_a_module_like_others() -> None:
    model, x = small(), faces()
    whole = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(value, whole[task]) for task, value in other(x).items())
    fresh = SwinFace(GROUPS, **SMALL).eval()
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(value, whole[task]) for task, value in fresh(x).items())
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert (half["expression"].float() - whole["expression"]).abs().max() < 0.2 * whole["expression"].abs().max() + 0.05
    wide = SwinFace(GROUPS, **SMALL, dtype=torch.float64).eval()
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    assert wide(x.double())["age"].dtype == torch.float64


# --- published names ---


def test_published_names_there_and_back() -> None:
    model, x = small(0), faces()
    weights = model.official_state_dict()
    assert "fam.nets.2.channel_attention.mlp.3.bias" in weights
    assert weights["om.output_fcs.2.weight"].shape == (7, 32)
    assert "backbone.layers.0.downsample.reduction.weight" in weights
    extra = {"backbone.head.weight": torch.zeros(4, 64), "backbone.layers.0.blocks.0.attn_mask": torch.zeros(1)}
    whole = model(x)
    parts = {}
    for name, value in weights.items():
        parts.setdefault(name.split(".")[0], {})[name.split(".", 1)[1]] = value
    checkpoint = {f"state_dict_{name}": part for name, part in parts.items()} | {
        "epoch": 3,
        "state_optimizer": {"a": 1},
    }
    for given_as in (weights | extra, parts, checkpoint):
        other = small(5)
        other.load_official_state_dict(given_as)
        assert all(torch.equal(value, whole[task]) for task, value in other(x).items())


def test_names_at_full_size() -> None:
    names = SwinFace(device="meta").official_state_dict()
    for name, shape in {
        "fam.nets.10.conv.convs.3.weight": (186, 768, 3, 3),
        "fam.nets.0.channel_attention.mlp.1.weight": (32, 512),
        "fam.nets.0.norm.running_var": (512,),
        "tss.nets.10.feature.3.weight": (512, 512),
        "om.output_fcs.41.weight": (2, 512),
        "om.output_fcs.1.bias": (1,),
        "backbone.feature.3.running_mean": (512,),
        "backbone.layers.2.blocks.5.attn.relative_position_bias_table": (169, 12),
        "backbone.patch_embed.proj.weight": (96, 3, 2, 2),
        "backbone.norm.weight": (768,),
    }.items():
        assert tuple(names[name].shape) == shape


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    model = small(0)
    weights = model.official_state_dict()
    other = small(5)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    missing = {k: v for k, v in weights.items() if k != "tss.nets.1.feature.0.bias"}
    no_block = {k: v for k, v in weights.items() if k != "backbone.layers.0.blocks.0.norm1.weight"}
    wrong = weights | {"om.output_fcs.0.bias": torch.zeros(3)}
    for state, match in (
        (missing, "missing: tss.nets.1.feature.0.bias"),
        (no_block, "missing: layers.0.blocks.0.norm1.weight"),
        (weights | {"fam.nets.9.norm.bias": torch.zeros(3)}, "left over: fam.nets.9.norm.bias"),
        (wrong, r"om.output_fcs.0.bias \(3,\), wanted \(1,\)"),
        ({"backbone.norm.weight": 3}, "got int for 'backbone.norm.weight'"),
    ):
        with pytest.raises(ValueError, match=match):
            other.load_official_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


# --- one more task ---


def test_an_added_task_leaves_the_others_as_they_are() -> None:
    model, x = small(), faces(6)
    whole = model(x)
    bank = model.add_task(TaskGroup("mask", {"mask": 2}), like="hat")
    assert model.tasks[-1] == "mask"
    torch.testing.assert_close(bank.mlca.branch(0)(model.pyramid(x)), model.mlca("hat")(model.pyramid(x)))
    model.train()
    assert [p for p in model.parameters() if p.requires_grad] == list(bank.parameters())
    optimizer = torch.optim.SGD(bank.parameters(), 1.0)
    target = torch.tensor([0, 1] * 3)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(x, ["mask"])["mask"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.02
    model.eval()
    after = model(x)
    assert all(torch.equal(after[task], value) for task, value in whole.items())
    model.unfreeze().train()
    assert model.backbone.training
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="groups: got"):
        model.add_task(TaskGroup("mask", {"other": 2}))
    with pytest.raises(ValueError, match="task: got 'mood'"):
        model.add_task(TaskGroup("new", {"new": 2}), like="mood")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    again = small(3)
    again.add_task(TaskGroup("mask", {"mask": 2}))
    again.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(again.eval()(x)["mask"], model.eval()(x)["mask"])


def test_a_swin_of_ones_own() -> None:
    swin = SwinBackbone(2, 3, 2, 16, (1, 1), (1, 2), 4, taps="after")
    model = SwinFace(GROUPS, 16, backbone=swin).eval()
    assert model.pyramid(faces(1)).shape == (1, 64, 8, 8)
    with pytest.raises(ValueError, match="backbone: got"):
        SwinFace(GROUPS, 16, backbone=nn.Sequential(swin)).official_state_dict()
