"""What is kept: the specification and result of a trial, the verdict of a claim, and the machine both came from.

All records are plain data that go to JSON and back; the store and the reports know nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

Status = Literal["holds", "inconclusive", "fails", "not run", "error"]
STATUSES: tuple[Status, ...] = ("holds", "inconclusive", "fails", "not run", "error")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same data is always the same text. NaN and infinities become strings."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """`value` with only JSON's own types; numbers that are not finite become ``"nan"``, ``"inf"``, ``"-inf"``."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def number(value: Any) -> float:
    """The inverse of `plain` for one number."""
    return float(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class TrialSpec:
    """One run: what is executed, with which arm, seed, tier and settings, by which code.

    `target` is the import path of a protocol ``(trial, arm)`` or, for an exact claim, of a function ``(trial)``.
    `code` is the fingerprint of the protocol alone, whatever the arm: what stages are kept under; without it none is
    kept. Neither it nor label, limits and preloads belong to the identity of the trial.
    """

    target: str
    fingerprint: str
    seed: int = 0
    tier: str = "desk"
    device: str = "cpu"
    arm_target: str = ""
    arm_options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: str = ""
    label: str = ""
    exclusive: bool = False
    time_limit: float = 900.0
    memory_limit_gib: float = 8.0
    preload: tuple[str, ...] = ()
    code: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "preload", tuple(self.preload))  # JSON has no tuples

    @cached_property
    def key(self) -> str:
        """Identity: a finished trial with this key is never run again."""
        identity = asdict(self)
        for name in ("label", "exclusive", "time_limit", "memory_limit_gib", "preload", "code"):
            del identity[name]
        return digest(identity)


@dataclass(frozen=True)
class TrialResult:
    """What came out of a trial: metrics and curves, or an error with its traceback or signal."""

    key: str
    status: Literal["done", "error"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    peak_memory: int = 0
    machine: str = ""
    finished: datetime = field(default_factory=now)


@dataclass(frozen=True)
class Machine:
    """The machine and the versions that a result came from; `id` is a digest of everything else."""

    id: str
    cpu: str
    cores: int
    memory_gib: float
    os: str
    python: str
    accelerator: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """The numbers of one criterion, or of one bound of an exact claim.

    For a criterion: mean with its 95 % interval (of the difference, ratio or value), the interval at the level that
    Holm's correction left (`adjusted_low`, `adjusted_high`), p, effect size, and the values of both arms by seed.
    For a bound: `observed` and the bound in words.
    """

    label: str
    side: Literal["holds", "fails", "inconclusive"]
    observed: float | None = None
    low: float | None = None
    high: float | None = None
    adjusted_low: float | None = None
    adjusted_high: float | None = None
    level: float | None = None
    p: float | None = None
    effect: float | None = None
    interval: str = ""
    margin: float | None = None
    direction: str = ""
    expected: str = ""
    scale: str = "difference"
    method: str = ""
    baseline: str = ""
    method_values: Mapping[str, float] = field(default_factory=dict)
    baseline_values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """The measured state of one claim, with all that it rests on. Never typed in by hand."""

    paper: str
    claim: str
    kind: str
    status: Status
    tier: str
    device: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: bool = False
    comparisons: tuple[Comparison, ...] = ()
    reason: str = ""
    seeds: int = 0
    seconds: float = 0.0
    fingerprint: str = ""
    machine: str = ""
    trials: tuple[str, ...] = ()
    created: datetime = field(default_factory=now)

    @property
    def question(self) -> str:
        """Digest of what was asked: the paper, claim, tier, device, settings and whether it is a control."""
        return digest([self.paper, self.claim, self.tier, self.device, dict(self.settings), self.control])

    @property
    def content(self) -> str:
        """Digest of the answer without the time it was given: an unchanged verdict is not stored twice."""
        data = self.to_json()
        for name in ("created", "seconds"):
            del data[name]
        return digest(data)

    def to_json(self) -> dict[str, Any]:
        """As JSON data; the inverse of `from_json`."""
        data = asdict(self)
        data["created"] = self.created.isoformat()
        return dict(plain(data))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote."""
        floats = (
            "observed", "low", "high", "adjusted_low", "adjusted_high", "level", "p", "effect", "margin",
        )  # fmt: skip
        comparisons = []
        for one in data["comparisons"]:
            values = dict(one)
            for name in floats:
                if values[name] is not None:
                    values[name] = number(values[name])
            for name in ("method_values", "baseline_values"):
                values[name] = {seed: number(v) for seed, v in values[name].items()}
            comparisons.append(Comparison(**values))
        rest = {k: v for k, v in data.items() if k not in ("comparisons", "created", "trials")}
        created = datetime.fromisoformat(data["created"])
        return Verdict(**rest, comparisons=tuple(comparisons), trials=tuple(data["trials"]), created=created)
