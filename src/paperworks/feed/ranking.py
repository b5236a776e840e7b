"""Scores that order a feed: by points and age, by decay, by share, and the fusion of several orders. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from datetime import datetime
from typing import TypeVar

__all__ = ["HALF_LIVES", "WEIGHTS", "DecayedScore", "decay", "hn", "hot", "rrf", "wilson"]

WEIGHTS = {"vote": 1.0, "comment": 2.0, "view": 0.05, "run": 0.5}
"""What each kind of event counts. A run is a verdict that was measured."""

HALF_LIVES = {"day": 24, "week": 72, "month": 240}
"""Hours in which a score halves, by window."""

Id = TypeVar("Id", bound=Hashable)

_HOT_EPOCH = 1_134_028_003  # seconds; the zero of the scale
_HOT_SECONDS = 45_000  # that outweigh a tenfold score


def hn(points: float, age_hours: float) -> float:
    """(points - 1) / (age + 2)^1.8 with the age in hours, counted as 0 where it is below."""
    return float((points - 1) / (max(0.0, age_hours) + 2) ** 1.8)


def hot(score: float, epoch_seconds: float) -> float:
    """sign(score) log10 max(|score|, 1) + (t - 1134028003) / 45000: newer ones start higher, nothing decays."""
    sign = (score > 0) - (score < 0)
    return sign * math.log10(max(abs(score), 1)) + (epoch_seconds - _HOT_EPOCH) / _HOT_SECONDS


def wilson(positive: float, total: float, z: float = 1.96) -> float:
    """Lower end of Wilson's interval of a share; 0 where nothing was counted.

    Raises ValueError for counts that are no share or a negative z.
    """
    if not 0 <= positive <= total or z < 0:
        raise ValueError(f"wilson: got {positive} of {total} with z={z}, wanted 0 <= positive <= total and z >= 0")
    if total == 0:
        return 0.0
    share, z2 = positive / total, z * z
    spread = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return (share + z2 / (2 * total) - spread) / (1 + z2 / total)


def decay(events: Iterable[tuple[float, float]], half_life_hours: float) -> float:
    """Sum over (weight, age in hours) of weight 2^(-age / half-life). Raises ValueError for a half-life not above 0."""
    _check_half_life(half_life_hours)
    return math.fsum(weight * 2 ** (-age / half_life_hours) for weight, age in events)


def _check_half_life(hours: float) -> None:
    if not hours > 0:
        raise ValueError(f"half_life_hours: got {hours}, wanted a number > 0")


class DecayedScore:
    """`decay` as one number that is brought up to date by each event in constant time, in any order of time.

    Raises ValueError for a half-life not above 0 and for a time without a zone.
    """

    def __init__(self, half_life_hours: float) -> None:
        _check_half_life(half_life_hours)
        self.half_life_hours = half_life_hours
        self.value = 0.0  # at `time`
        self.time: datetime | None = None

    def add(self, weight: float, at: datetime) -> None:
        """Count an event; one that is older than the newest counts as much as if it had come in its time."""
        check_aware("at", at)
        if self.time is None:
            self.value, self.time = float(weight), at
        elif at >= self.time:
            self.value, self.time = self.value * self._factor(self.time, at) + weight, at
        else:
            self.value += weight * self._factor(at, self.time)

    def at(self, now: datetime) -> float:
        """The score at `now`. A time before the newest event counts that event as if it were still to come, above 1."""
        check_aware("now", now)
        return 0.0 if self.time is None else self.value * self._factor(self.time, now)

    def _factor(self, start: datetime, end: datetime) -> float:
        return float(2 ** (-((end - start).total_seconds() / 3600) / self.half_life_hours))


def check_aware(name: str, when: datetime) -> None:
    """Raise ValueError for a time without a zone, TypeError for no time at all."""
    if not isinstance(when, datetime):
        raise TypeError(f"{name}: got {type(when).__name__}, wanted a datetime")
    if when.tzinfo is None or when.utcoffset() is None:
        raise ValueError(f"{name}: got {when.isoformat()} without a time zone, wanted an aware datetime")


def rrf(lists: Sequence[Sequence[Id]], k: float = 60, weights: Sequence[float] | None = None) -> list[tuple[Id, float]]:
    """Reciprocal rank fusion: score = sum over the lists that name it of weight / (k + rank), ranks from 1.

    Best first. Ties: the one named in the earlier list, then by id.

    Raises ValueError where there is not one weight a list, or where k is below 0.
    """
    weights = [1.0] * len(lists) if weights is None else weights
    if len(weights) != len(lists):
        raise ValueError(f"weights: got {len(weights)} for {len(lists)} lists, wanted one a list")
    if k < 0:
        raise ValueError(f"k: got {k}, wanted 0 or more")
    scores: dict[Id, float] = {}
    first: dict[Id, int] = {}
    for number, (ids, weight) in enumerate(zip(lists, weights, strict=True)):
        for rank, id in enumerate(dict.fromkeys(ids), 1):
            scores[id] = scores.get(id, 0.0) + weight / (k + rank)
            first.setdefault(id, number)
    return sorted(scores.items(), key=lambda item: (-item[1], first[item[0]], str(item[0])))
