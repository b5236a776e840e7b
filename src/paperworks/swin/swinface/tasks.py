"""The face tasks of SwinFace: eleven groups with 42 outputs, in the order of the published heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paperworks.data.face_lists import task_name

__all__ = ["FACE_TASK_GROUPS", "RECOGNITION", "TaskGroup", "task_name"]

RECOGNITION = "recognition"
"""The output that is no task of a group: the identity embedding."""


@dataclass(frozen=True)
class TaskGroup:
    """Tasks that share an attention module and a subnet.

    Attributes:
        name: of the group.
        outputs: numbers a task puts out: classes, or 1 for a quantity.
    """

    name: str
    outputs: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError(f"outputs: got none in the group {self.name!r}, wanted one or more tasks")
        for task, count in self.outputs.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"outputs: got {count!r} for {task!r}, wanted a whole number, 1 or more")


def _attributes(name: str, tasks: Sequence[str]) -> TaskGroup:
    return TaskGroup(name, dict.fromkeys(tasks, 2))


FACE_TASK_GROUPS: tuple[TaskGroup, ...] = (
    TaskGroup("gender", {"gender": 2}),
    TaskGroup("age", {"age": 1, "young": 2}),
    TaskGroup("expression", {"expression": 7, "smiling": 2}),
    _attributes("whole", ("attractive", "blurry", "chubby", "heavy_makeup", "oval_face", "pale_skin")),
    _attributes(
        "hair",
        (
            "bald", "bangs", "black_hair", "blond_hair", "brown_hair", "gray_hair", "receding_hairline",
            "straight_hair", "wavy_hair", "wearing_hat",
        ),
    ),
    _attributes("eyes", ("arched_eyebrows", "bags_under_eyes", "bushy_eyebrows", "eyeglasses", "narrow_eyes")),
    _attributes("nose", ("big_nose", "pointy_nose")),
    _attributes("cheeks", ("high_cheekbones", "rosy_cheeks", "wearing_earrings", "sideburns")),
    _attributes(
        "mouth",
        (
            "five_o_clock_shadow", "big_lips", "mouth_slightly_open", "mustache", "wearing_lipstick", "no_beard",
        ),
    ),
    _attributes("chin", ("double_chin", "goatee")),
    _attributes("neck", ("wearing_necklace", "wearing_necktie")),
)  # fmt: skip
"""Gender, age, expressions and forty attributes of CelebA (gender, young and smiling are three of the forty)."""


def check_groups(groups: Sequence[TaskGroup]) -> None:
    """Raises ValueError for names that occur twice, or none at all."""
    names = [group.name for group in groups]
    tasks = [task for group in groups for task in group.outputs]
    if not groups or len(set(names)) != len(names) or len(set(tasks)) != len(tasks) or RECOGNITION in tasks:
        wanted = f"one or more, no name of a group or a task twice, and no task {RECOGNITION!r}"
        raise ValueError(f"groups: got {names} with the tasks {tasks}, wanted {wanted}")
