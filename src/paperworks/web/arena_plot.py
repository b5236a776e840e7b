"""The table of an arena as it is drawn: where the bars lie, and numbers with the digits that their intervals leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paperworks.lab.report.wording import with_digits
from paperworks.web.models import ArenaRow, ArenaTable

PADDING = 0.04

Place = Callable[[float], float]


@dataclass(frozen=True)
class Row:
    """One arm. Positions are in per cent of the plot's width."""

    arm: str
    is_reference: bool
    seeds: int
    error: str = ""
    at_mean: float = 0.0
    at_low: float = 0.0
    width: float = 0.0
    mean: str = ""
    interval: str = ""
    difference: str = ""
    difference_interval: str = ""


@dataclass(frozen=True)
class ArenaPlot:
    """All arms; `reference` is where the reference's mean lies, `low` and `high` are the ends of the axis in words."""

    rows: tuple[Row, ...]
    reference: float | None
    low: str
    high: str


def arena_plot(table: ArenaTable) -> ArenaPlot | None:
    """The plot of an arena; None where nothing was measured."""
    ends = [end for row in table.rows for end in (row.low, row.high) if end is not None]
    if not ends:
        return None
    low, high = min(ends), max(ends)
    spread = (high - low) or abs(low) or 1.0
    low, high = low - PADDING * spread, high + PADDING * spread

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 3)

    reference = next((row.mean for row in table.rows if row.arm == table.reference), None)
    return ArenaPlot(
        rows=tuple(_row(row, table.reference, place) for row in table.rows),
        reference=None if reference is None else place(reference),
        low=with_digits(low, spread / 10),
        high=with_digits(high, spread / 10),
    )


def _row(row: ArenaRow, reference: str, place: Place) -> Row:
    is_reference = row.arm == reference
    if row.mean is None or row.low is None or row.high is None:
        return Row(row.arm, is_reference, row.seeds, error=row.error or "not measured")
    half = (row.high - row.low) / 2
    made = {}
    if row.difference is not None and row.difference_low is not None and row.difference_high is not None:
        width = (row.difference_high - row.difference_low) / 2
        ends = [with_digits(end, width, sign=True) for end in (row.difference_low, row.difference_high)]
        made = {
            "difference": with_digits(row.difference, width, sign=True),
            "difference_interval": f"[{ends[0]}, {ends[1]}]",
        }
    return Row(
        row.arm,
        is_reference,
        row.seeds,
        at_mean=place(row.mean),
        at_low=place(row.low),
        width=round(place(row.high) - place(row.low), 3),
        mean=with_digits(row.mean, half),
        interval=f"{with_digits(row.low, half)} to {with_digits(row.high, half)}",
        **made,
    )
