"""The interval plot of one criterion: where its margin, intervals and seeds lie, in per cent of the plot's width.

Positions in per cent let the plot be as wide as its column while text and marks keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paperworks.lab.report.wording import comparison_words, value_of

PADDING = 0.07
CLAIMED_SHARE = 0.3
"""The claimed side gets at least this share of the width, room for its name."""
TICK_DISTANCE = 15.0


@dataclass(frozen=True)
class Plot:
    """An interval plot in per cent of its width.

    Attributes:
        margin: the line that separates the sides; its text is `margin_text`.
        claimed: left edge and width of the claimed side.
        to_right: whether the claimed side is the right one.
        mean: the estimate, None where there is none.
        interval, adjusted: left edge and width of the 95 % interval and of the one at Holm's level.
        dots: (position, row from 0 to 2, text) of every seed.
        ticks: (position, text) along the axis, the margin's left out.
        summary: the plot in words.
    """

    margin: float
    margin_text: str
    claimed: tuple[float, float]
    to_right: bool
    mean: float | None
    interval: tuple[float, float] | None
    adjusted: tuple[float, float] | None
    dots: tuple[tuple[float, int, str], ...]
    ticks: tuple[tuple[float, str], ...]
    summary: str


def interval_plot(comparison: Mapping[str, Any]) -> Plot | None:
    """The plot of one criterion's comparison in JSON form; None where it has no margin or nothing to show."""
    ratio = comparison["scale"] == "ratio"
    margin = _axis(comparison["margin"], ratio)
    named = {name: _axis(comparison[name], ratio) for name in ("observed", "low", "high")}
    named |= {name: _axis(comparison[name], ratio) for name in ("adjusted_low", "adjusted_high")}
    seeds = {seed: at for seed, v in comparison["paired"].items() if (at := _axis(v, ratio)) is not None}
    shown = [at for at in (*named.values(), *seeds.values()) if at is not None]
    if margin is None or not shown:
        return None
    to_right = comparison["direction"] == "greater"
    low, high = _domain([*shown, margin], margin, to_right)

    def place(at: float) -> float:
        return round(100 * (at - low) / (high - low), 3)

    def span(first: str, last: str) -> tuple[float, float] | None:
        start, end = named[first], named[last]
        return None if start is None or end is None else (place(start), round(place(end) - place(start), 3))

    words = comparison_words(comparison)
    at_margin = place(margin)
    mean = named["observed"]
    return Plot(
        margin=at_margin,
        margin_text=words["margin"],
        claimed=(at_margin, round(100 - at_margin, 3)) if to_right else (0.0, at_margin),
        to_right=to_right,
        mean=None if mean is None else place(mean),
        interval=span("low", "high"),
        adjusted=span("adjusted_low", "adjusted_high"),
        dots=tuple(
            (place(at), row % 3, f"seed {seed}: {_number(comparison['paired'][seed])}")
            for row, (seed, at) in enumerate(sorted(seeds.items(), key=lambda item: _order(item[0])))
        ),
        ticks=tuple((at, text) for at, text in _ticks(low, high, ratio, place) if abs(at - at_margin) >= TICK_DISTANCE),
        summary=f"{words['kind']} {words['estimate']}, 95 % interval {words['interval']}, claimed "
        f"{'above' if to_right else 'below'} {words['margin']}; {words['n']} seeds",
    )


def _axis(value: Any, ratio: bool) -> float | None:
    """Where a number lies on the axis: its logarithm for a ratio."""
    found = value_of(value)
    if found is None or not ratio:
        return found
    return math.log(found) if found > 0 else None


def _order(seed: str) -> tuple[int, str]:
    return (int(seed), seed) if seed.lstrip("-").isdigit() else (0, seed)


def _number(value: Any) -> str:
    return f"{float(value):.4g}".replace("-", "−")


def _domain(shown: list[float], margin: float, to_right: bool) -> tuple[float, float]:
    low, high = min(shown), max(shown)
    spread = high - low
    if spread <= 1e-12 * max(1.0, abs(low), abs(high)):
        spread = abs(low) * 0.2 or 1.0
        low, high = low - spread / 2, high + spread / 2
    low, high = low - PADDING * spread, high + PADDING * spread
    # Widen the claimed side until it has its share.
    if to_right:
        high = max(high, margin + CLAIMED_SHARE / (1 - CLAIMED_SHARE) * (margin - low))
    else:
        low = min(low, margin - CLAIMED_SHARE / (1 - CLAIMED_SHARE) * (high - margin))
    return low, high


def _ticks(low: float, high: float, ratio: bool, place: Any) -> list[tuple[float, str]]:
    """Round numbers along the axis, far enough from the edges and from one another."""
    first, last = (math.exp(low), math.exp(high)) if ratio else (low, high)
    if ratio and last / first > 5:
        exponents = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        numbers = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    else:
        step = _round_step((last - first) / 4)
        numbers = [step * k for k in range(math.ceil(first / step), math.floor(last / step) + 1)]
    ticks: list[tuple[float, str]] = []
    for number in numbers:
        if first <= number <= last:
            at = place(math.log(number) if ratio else number)
            if 6 <= at <= 94 and (not ticks or at - ticks[-1][0] >= TICK_DISTANCE):
                ticks.append((at, _number(number)))
    return ticks


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough * (1 - 1e-9))
