"""What is compared in the claims about sharpness-aware minimisation: which parts, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        sam: sharpness-aware minimisation around the base optimiser, or the base optimiser alone.
        squeeze: squeeze-and-excitation before the head.
        every: climb at every k-th step.
        times: epochs over those of the settings.
    """

    sam: bool = True
    squeeze: bool = True
    every: int = 1
    times: int = 1


def recipe(sam: bool = True, squeeze: bool = True, every: int = 1, times: int = 1) -> Recipe:
    """The recipe of an arm's options."""
    return Recipe(sam, squeeze, every, times)
