"""The trainings of the protocol about face tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.data.faces import render_faces
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.faces_arms import FaceRecipe
from paperworks.papers.protocols.sharpness_training import face_parts
from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.swinface import (
    CosFaceHead,
    JointBatches,
    Part,
    SwinFace,
    TaskBatch,
    TaskGroup,
    fit_joint,
    gate_report,
    predict,
    task_scores,
    verify_pairs,
)
from paperworks.swin.swinface.branches import BatchedLinear

GROUPS = (
    TaskGroup("age", {"age": 1, "young": 2}),
    TaskGroup("expression", {"expression": 7, "smiling": 2}),
    TaskGroup(
        "attributes",
        dict.fromkeys(("gender", "eyeglasses", "wearing_hat", "bangs", "gray_hair", "no_beard", "wearing_lipstick"), 2),
    ),
)
PARTS = (*(group.name for group in GROUPS), "identity")
TASKS = {"identity": ("identity",), **{group.name: tuple(group.outputs) for group in GROUPS}}
WEIGHTS = {"age": 0.01, "identity": 0.1}
"""Of losses that begin one or two orders above a cross-entropy, so that a short training hears every task."""
SHOWN = 8


def parts_of(trial: Trial) -> tuple[str, ...]:
    """The parts that the settings ask for."""
    return PARTS if trial.settings["identities"] else PARTS[:-1]


def drawn_faces(trial: Trial) -> dict[str, Tensor]:
    """The training parts and the test faces of a seed: ``part/images`` and ``part/<task>``."""
    settings, found = trial.settings, {}
    sizes = [(part, settings["faces"], settings["people"]) for part in parts_of(trial)]
    for part, n, people in (*sizes, ("test", settings["test_size"], max(2, settings["test_size"] // 6))):
        faces = render_faces(n, settings["size"], trial.generator(f"faces {part}"), identities=people)
        found[f"{part}/images"] = (faces.images * 255).round().to(torch.uint8)
        found |= {f"{part}/{task}": target for task, target in faces.targets.items()}
    return found


def inputs(images: Tensor) -> Tensor:
    """Bytes as what a network takes, in [-1, 1]."""
    return images.float() / 127.5 - 1


class LastLevel(nn.Module):
    """A Swin that gives its last map alone, channels first."""

    def __init__(self, swin: SwinBackbone) -> None:
        super().__init__()
        self.swin, self.channels = swin, swin.channels[-1:]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one map (B, C, h, w)."""
        return [self.swin(x)[-1].movedim(-1, 1)]


class AlikeFace(nn.Module):
    """A SwinFace whose branches all have every task: an output is the mean over branches."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        every = {task: count for group in GROUPS for task, count in group.outputs.items()}
        self.plain = tuple(every)
        groups = [TaskGroup(g.name, {f"{task}@{g.name}": n for task, n in every.items()}) for g in GROUPS]
        self.face = SwinFace(groups, **options)
        self.backbone, self.norm = self.face.backbone, self.face.norm
        self.tasks = ("recognition", *self.plain)

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """As `SwinFace`."""
        wanted = self.tasks if tasks is None else tasks
        inside = [f"{t}@{g.name}" for t in wanted if t != "recognition" for g in GROUPS]
        found = self.face(x, [*inside, *(["recognition"] if "recognition" in wanted else [])])
        return {
            t: found[t] if t == "recognition" else torch.stack([found[f"{t}@{g.name}"] for g in GROUPS]).mean(0)
            for t in wanted
        }


def build(trial: Trial, recipe: FaceRecipe, groups: Sequence[TaskGroup] = GROUPS, task_width: int | None = None) -> Any:
    """A small SwinFace of three stages, with the arm's branches."""
    settings = trial.settings
    width: int = settings["width"]
    options: dict[str, Any] = {
        "img_size": settings["size"], "patch_size": 2, "embed_dim": width, "depths": (1, 1, 2),
        "num_heads": (1, 2, 4), "window_size": 4, "drop_path_rate": 0.0, "subnet_dropout": 0.1,
        "embedding_size": 4 * width, "task_width": task_width or 4 * width,
    }  # fmt: skip
    with trial.global_generators("weights"):
        if recipe.alike:
            return started(AlikeFace(**options))
        if recipe.levels == "last":
            swin = SwinFace(groups, **options).backbone
            assert isinstance(swin, SwinBackbone)
            return started(SwinFace(groups, **{**options, "backbone": LastLevel(swin)}))
        return started(SwinFace(groups, **options))


@torch.no_grad()
def started(model: nn.Module) -> nn.Module:
    """Linear layers as far from zero, for their narrower inputs, as 512 inputs are at the published deviation, 0.02."""
    for module in model.modules():
        if isinstance(module, nn.Linear | BatchedLinear):
            module.weight.mul_((512 / module.weight.shape[-1]) ** 0.5)
    return model


def widened(trial: Trial, recipe: FaceRecipe, groups: Sequence[TaskGroup] = GROUPS) -> int:
    """Width of the branches at which the last level alone has as many parameters as all levels, or just fewer."""
    start = 4 * trial.settings["width"]
    with torch.device("meta"):
        wanted = count_parameters(build(trial, FaceRecipe(), groups))
        low, high = start // 2, 2 * start
        while high - low > 1:
            middle = (low + high) // 2
            fits = count_parameters(build(trial, recipe, groups, middle)) <= wanted
            low, high = (middle, high) if fits else (low, middle)
    return low


def batches(
    trial: Trial, faces: dict[str, Tensor], parts: Sequence[str], steps: int
) -> Iterator[tuple[Tensor, dict[str, TaskBatch]]]:
    """The parts one behind the other, each with the labels of its own tasks; a part's faces do not depend on others."""
    size = trial.settings["batch_size"]
    draws = {part: trial.generator(f"batches {part}") for part in parts}
    queues = {part: torch.empty(0, dtype=torch.long) for part in parts}
    for _ in range(steps):
        images: list[Tensor] = []
        found: dict[str, TaskBatch] = {}
        for number, part in enumerate(parts):
            while len(queues[part]) < size:
                order = torch.randperm(len(faces[f"{part}/images"]), generator=draws[part])
                queues[part] = torch.cat([queues[part], order])
            taken, queues[part] = queues[part][:size], queues[part][size:]
            mirrored = torch.rand(size, 1, 1, 1, generator=draws[part]) < 0.5
            own = faces[f"{part}/images"][taken]
            images.append(torch.where(mirrored, own.flip(-1), own))
            rows = slice(number * size, (number + 1) * size)
            found |= {task: TaskBatch(rows, faces[f"{part}/{task}"][taken]) for task in TASKS[part]}
        yield inputs(torch.cat(images)), found


def trained(trial: Trial, recipe: FaceRecipe, faces: dict[str, Tensor], parts: Sequence[str]) -> Any:
    """A network that has learned the parts."""
    settings = trial.settings
    groups = [group for group in GROUPS if group.name in parts] or GROUPS[:1]
    width = widened(trial, recipe) if recipe.levels == "last" else None
    model = build(trial, recipe, groups, width).to(trial.device)
    if "age" in parts:  # years begin at their mean, in each branch that tells them
        face = model.face if isinstance(model, AlikeFace) else model
        for task in (task for task in face.tasks if task.partition("@")[0] == "age"):
            face.start_at(task, float(faces["age/age"].mean()))
    head = None
    if "identity" in parts:
        with trial.global_generators("identities"):
            head = CosFaceHead(4 * settings["width"], settings["people"], scale=16.0, margin=0.2).to(trial.device)
    steps = settings["steps"]
    with trial.global_generators("training"):
        losses = fit_joint(
            model, batches(trial, faces, parts, steps), head=head, steps=steps, lr=settings["lr"], backbone_scale=1.0,
            weights={k: v for k, v in WEIGHTS.items() if k in parts},
            callback=lambda step, _: trial.progress((step + 1) / steps, f"step {step + 1}/{steps}"),
        )  # fmt: skip
    trial.curve(f"loss: {', '.join(parts)}", losses)
    return model.eval()


def train_and_score(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.faces_tasks.face_tasks`."""
    recipe: FaceRecipe = arm.build()
    names = ("size", "faces", "people", "test_size", "identities")
    faces = trial.stage("faces", lambda: drawn_faces(trial), **{name: trial.settings[name] for name in names})
    test = inputs(faces["test/images"])
    outputs: dict[str, Tensor] = {}
    parameters = 0
    together = (parts_of(trial),) if recipe.joint else tuple((part,) for part in parts_of(trial))
    for parts in together:
        model = trained(trial, recipe, faces, parts)
        wanted = [task for part in parts for task in ("recognition",) * (part == "identity") + TASKS[part]]
        outputs |= predict(model, test.split(200), [task for task in wanted if task != "identity"])
        parameters += count_parameters(model)
    found = scores(outputs, faces)
    found["gate_spread"] = gate_spread(trial, model, test[:200].to(trial.device)) if recipe.joint else 0.0
    keep_pictures(trial, faces, outputs)
    return found | {"parameters": float(parameters)}


def over_guessing(outputs: Tensor, target: Tensor) -> float:
    """(balanced accuracy - 1 / K) / (1 - 1 / K) for K classes: 0 for any answer that does not look at the face."""
    right = (outputs.argmax(1) == target).float()
    balanced = float(torch.stack([right[target == k].mean() for k in target.unique()]).mean())
    chance = 1 / outputs.shape[1]
    return (balanced - chance) / (1 - chance)


def scores(outputs: dict[str, Tensor], faces: dict[str, Tensor]) -> dict[str, float]:
    """By group of tasks, and the mean over groups."""
    ages = faces["test/age"]
    error = (outputs["age"].flatten() - ages).abs().mean() / (ages.median() - ages).abs().mean()
    found = {"age": float(1 - error)}
    for group in GROUPS[1:]:
        each = [over_guessing(outputs[task], faces[f"test/{task}"]) for task in group.outputs]
        found[group.name] = sum(each) / len(each)
    if "recognition" in outputs:
        found["identity"] = 2 * pair_accuracy(outputs["recognition"], faces["test/identity"]) - 1
    return {"identity": 0.0, "score": sum(found.values()) / len(found), **found}


def pair_accuracy(embeddings: Tensor, who: Tensor) -> float:
    """Of all pairs of one person and as many of two, drawn in one fixed way."""
    first, second = torch.combinations(torch.arange(len(who))).T
    same = who[first] == who[second]
    one = torch.nonzero(same).flatten()
    two = torch.nonzero(~same).flatten()
    two = two[torch.randperm(len(two), generator=torch.Generator().manual_seed(0))[: len(one)]]
    rows = torch.stack([one, two], 1).flatten()
    return verify_pairs(embeddings[first[rows]], embeddings[second[rows]], same[rows]).accuracy


def gate_spread(trial: Trial, model: Any, images: Tensor) -> float:
    """Mean over pairs of branches of half the sum of |differences| of their levels' shares; keeps the shares."""
    face = model.face if isinstance(model, AlikeFace) else model
    shares = {name: torch.tensor(use.levels) for name, use in gate_report(face, images).items()}
    for name, share in shares.items():
        trial.curve(f"levels: {name}", share.tolist())
    apart = [float((a - b).abs().sum() / 2) for a, b in combinations(shares.values(), 2)]
    return sum(apart) / len(apart)


def keep_pictures(trial: Trial, faces: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    """Some test faces, with what was said of them."""
    trial.curve("faces", faces["test/images"][:SHOWN].flatten().tolist())
    for task in ("age", "expression", "eyeglasses", "gender"):
        said = outputs[task].flatten() if task == "age" else outputs[task].argmax(1)
        trial.curve(f"said: {task}", said[:SHOWN].tolist())
        trial.curve(f"true: {task}", faces[f"test/{task}"][:SHOWN].tolist())


def train_on_patches(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.faces_patches.face_or_not`."""
    settings, recipe, groups = trial.settings, arm.build(), (TaskGroup("face", {"face": 2}),)
    images, labels, test_images, test_labels, _ = face_parts(trial)
    images, test = (x.expand(-1, 3, -1, -1) for x in (images, test_images))
    width = widened(trial, recipe, groups) if recipe.levels == "last" else None
    model = build(trial, recipe, groups, width).to(trial.device)
    seen = [(x, {"face": label}) for x, label in zip(images, labels, strict=True)]
    mirrored = [(x.flip(-1), known) for x, known in seen]
    part = Part([seen + mirrored], settings["batch_size"])
    batches = JointBatches([part], settings["steps"], trial.generator("batches"))
    with trial.global_generators("training"):
        trial.curve("loss", fit_joint(model, batches, lr=settings["lr"], backbone_scale=1.0))
    found = task_scores(predict(model, test.split(200), ["face"]), {"face": test_labels})["face"]
    return {"accuracy": found["accuracy"], "parameters": float(count_parameters(model))}
