"""What is compared in the claims about joint face analysis: which levels, which branches, which tasks together."""

from __future__ import annotations

from dataclasses import dataclass

from paperworks.lab.nouns import Arm

_RECIPE = "paperworks.papers.protocols.faces_arms:recipe"
METHOD = Arm("MLCA, all tasks together", _RECIPE)
LAST = Arm("last level only", _RECIPE, {"levels": "last"})
APART = Arm("a network for each task", _RECIPE, {"joint": False})
ALIKE = Arm("every branch has all tasks", _RECIPE, {"alike": True})


@dataclass(frozen=True)
class FaceRecipe:
    """One way to learn several tasks from faces.

    Attributes:
        levels: ``"all"`` of the pyramid, or the ``"last"``, with branches widened to as many parameters.
        joint: one network for all tasks; otherwise one for each, with as many updates.
        alike: every branch has all tasks, and a task's output is the mean over branches: what differs between branches
            is chance.
    """

    levels: str = "all"
    joint: bool = True
    alike: bool = False


def recipe(levels: str = "all", joint: bool = True, alike: bool = False) -> FaceRecipe:
    """The recipe of an arm's options."""
    if levels not in ("all", "last"):
        raise ValueError(f"levels: got {levels!r}, wanted 'all' or 'last'")
    return FaceRecipe(levels, joint, alike)
