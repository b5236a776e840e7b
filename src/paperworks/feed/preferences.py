"""What a subscriber wants to be sent, checked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any
from zoneinfo import ZoneInfo

from paperworks.feed.addresses import one_line

__all__ = ["FREQUENCIES", "Preferences"]

FREQUENCIES = ("daily", "weekly")
MOST_QUERIES, LONGEST_QUERY = 20, 200
MOST_AREAS, LONGEST_AREA = 50, 64
MOST_PAPERS = 50


@dataclass(frozen=True)
class Preferences:
    """Of one subscriber. With queries or areas, only papers that match one of them are sent; without, all may be.

    Attributes:
        frequency: ``daily``, or ``weekly`` on Monday.
        queries: searches whose new results are wanted, at most 20 of at most 200 characters.
        areas: of the catalogue, as on the papers' cards.
        minimum_score: votes, at the source and here together, that a paper has to have.
        timezone: IANA name, in which the hour is meant.
        hour: from 0 to 23; nothing is sent before it.
        count: papers in a digest, 1 to 50.

    Raises ValueError or TypeError for a value that is none of these.
    """

    frequency: str = "daily"
    queries: list[str] = field(default_factory=list)
    areas: list[str] = field(default_factory=list)
    minimum_score: float = 0.0
    timezone: str = "UTC"
    hour: int = 0
    count: int = 10

    def __post_init__(self) -> None:
        if self.frequency not in FREQUENCIES:
            raise ValueError(f"frequency: got {self.frequency!r}, wanted one of {', '.join(FREQUENCIES)}")
        object.__setattr__(self, "queries", _texts("queries", self.queries, MOST_QUERIES, LONGEST_QUERY))
        object.__setattr__(self, "areas", _texts("areas", self.areas, MOST_AREAS, LONGEST_AREA))
        score = self.minimum_score
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise TypeError(f"minimum_score: got {type(score).__name__}, wanted a number")
        if not (math.isfinite(score) and score >= 0):
            raise ValueError(f"minimum_score: got {score}, wanted a number of votes from 0")
        object.__setattr__(self, "minimum_score", float(score))
        _check_zone(self.timezone)
        _check_whole("hour", self.hour, 0, 23)
        _check_whole("count", self.count, 1, MOST_PAPERS)

    def __getitem__(self, name: str) -> Any:
        """The preference of that name. Raises KeyError."""
        if name not in _NAMES:
            raise KeyError(name)
        return getattr(self, name)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    def changed(self, changes: Mapping[str, Any]) -> Preferences:
        """These with some values replaced. Raises ValueError for an unknown name."""
        if unknown := sorted(changes.keys() - _NAMES):
            raise ValueError(f"preferences: got {', '.join(unknown)}, wanted names of {', '.join(sorted(_NAMES))}")
        return replace(self, **changes)

    def to_mapping(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Preferences:
        """Those that `to_mapping` gave. What is not understood here, a zone perhaps, is as by default."""
        found = cls()
        for name in _NAMES & values.keys():
            with contextlib.suppress(ValueError, TypeError):
                found = replace(found, **{name: values[name]})
        return found


_NAMES = {item.name for item in fields(Preferences)}


def _texts(name: str, values: Iterable[str], most: int, longest: int) -> list[str]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {type(values).__name__}, wanted a list of texts")
    found: list[str] = []
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name}: got {type(value).__name__} in the list, wanted texts")
        text = one_line(value)
        if not text or len(text) > longest:
            raise ValueError(f"{name}: got {value[: longest + 1]!r}, wanted texts of 1 to {longest} characters")
        if text not in found:
            found.append(text)
    if len(found) > most:
        raise ValueError(f"{name}: got {len(found)}, wanted at most {most}")
    return found


def _check_zone(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"timezone: got {type(name).__name__}, wanted a string")
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a folder of zones
        raise ValueError(f"timezone: got {name[:100]!r}, wanted an IANA name such as Europe/Berlin") from None


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted a whole number")
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, wanted {low} to {high}")
