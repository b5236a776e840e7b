"""Colours of figures on a light and on a dark ground, by the contrast that WCAG defines."""

from __future__ import annotations

Channels = tuple[float, float, float]

LIGHT, DARK = "#ffffff", "#12161c"
"""The grounds of the page's style sheet."""
FAINTEST_LINE = 1.5
"""A colour of less contrast with its ground is a shade of the ground, not one to draw with."""


def channels(colour: str) -> Channels:
    """The three channels of ``#rrggbb``, from 0 to 1."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, from 1 to 21."""
    lighter, darker = sorted((_luminance(channels(one)), _luminance(channels(other))), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def on_dark(colour: str) -> str:
    """`colour` for the dark ground, with no less contrast there than it has with the light one.

    A strong colour is mixed with white as far as it needs. A faint one, a shade of the light ground, becomes a shade of
    the dark one.
    """
    wanted = contrast(colour, LIGHT)
    if wanted < FAINTEST_LINE:
        towards = DARK
    elif contrast(colour, DARK) < wanted:
        towards = LIGHT
    else:
        return colour
    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        if (contrast(_mixed(colour, towards, middle), DARK) < wanted) == (towards == LIGHT):
            low = middle
        else:
            high = middle
    return _mixed(colour, towards, high)


def _mixed(one: str, other: str, share: float) -> str:
    mixed = (a + (b - a) * share for a, b in zip(channels(one), channels(other), strict=True))
    return "#" + "".join(f"{round(255 * value):02x}" for value in mixed)


def _luminance(colour: Channels) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
