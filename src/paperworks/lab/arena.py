"""One protocol, all the arms an area has, one table with intervals."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paperworks.lab.engines import Engine
from paperworks.lab.nouns import Arm, Protocol, at_tier
from paperworks.lab.plan import Circumstances, trial_spec
from paperworks.lab.records import TrialResult, TrialSpec
from paperworks.lab.runner import Keeper, Watcher, choose_device, run_trials
from paperworks.lab.settings import complete
from paperworks.lab.statistics import Estimate, estimate

PACKAGE = "paperworks.papers.protocols.arenas"


@dataclass(frozen=True)
class Arena:
    """A protocol with the arms to compare; the first arm is the reference of the paired differences."""

    area: str
    protocol: Protocol
    metric: str
    arms: tuple[Arm, ...]
    settings: Mapping[str, Any]
    seeds: Any
    higher_is_better: bool = True


@dataclass(frozen=True)
class Row:
    """One arm: its mean with interval, and its paired difference from the reference arm with interval."""

    arm: str
    values: Mapping[int, float]
    mean: Estimate | None
    difference: Estimate | None
    seconds: float
    error: str = ""


def find_arena(area: str) -> Arena:
    """The arena of an area. Raises ValueError that lists those that exist."""
    arenas: dict[str, Arena] = importlib.import_module(PACKAGE).ARENAS
    if area not in arenas:
        raise ValueError(f"arena: got {area!r}, wanted one of {', '.join(sorted(arenas))}")
    return arenas[area]


def run_arena(
    arena: Arena,
    store: Keeper,
    engine: Engine,
    *,
    tier: str = "desk",
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    watcher: Watcher | None = None,
) -> list[Row]:
    """Run every arm of the arena and return a row an arm, the best first, those in error last.

    Trials are shared with the claims of papers that use the same protocol and settings. Raises ValueError for a tier
    or setting that is not known.
    """
    given = dict(settings or {})
    for name in given:
        if arena.protocol.setting(name) is None:
            known = ", ".join(f"{s.name} ({s.help})" for s in arena.protocol.settings)
            raise ValueError(f"setting {name!r} is not known here. Settings: {known}")
    at = Circumstances(tier, choose_device(tier, device), given)
    plans = _plans(arena, at)
    specs = {spec.key: spec for _, by_seed in plans for spec in by_seed}
    results = {spec.key: r for spec, r in run_trials(specs, store, engine, watcher or Watcher())}
    return _rows(arena, plans, results)


def stored_arena(arena: Arena, store: Keeper, *, tier: str = "desk", device: str = "cpu") -> list[Row]:
    """The rows of the arms whose trials the store has already, as `run_arena` orders them; nothing is run.

    Trials of another version of the code do not count. Without the reference arm there are no differences.
    """
    plans = _plans(arena, Circumstances(tier, device, {}))
    results = store.trials([spec.key for _, by_seed in plans for spec in by_seed])
    return _rows(arena, [plan for plan in plans if all(spec.key in results for spec in plan[1])], results)


Plans = Sequence[tuple[Arm, Sequence[TrialSpec]]]


def _plans(arena: Arena, at: Circumstances) -> Plans:
    values = complete(arena.protocol, at.tier, arena.settings, at.given)
    seeds = range(int(at_tier(arena.seeds, at.tier)))
    return [(arm, [trial_spec(arena.protocol, arm, seed, values, at) for seed in seeds]) for arm in arena.arms]


def _rows(arena: Arena, plans: Plans, results: Mapping[str, TrialResult]) -> list[Row]:
    def scores(specs: Sequence[TrialSpec]) -> dict[int, float]:
        found = {spec.seed: results[spec.key] for spec in specs if spec.key in results}
        return {seed: float(r.metrics[arena.metric]) for seed, r in found.items() if r.status == "done"}

    reference = next((scores(specs) for arm, specs in plans if arm is arena.arms[0]), {})
    rows = []
    for arm, specs in plans:
        found = [results[spec.key] for spec in specs]
        seconds = sum(r.seconds for r in found)
        if errors := [r.error for r in found if r.status == "error"]:
            rows.append(Row(arm.name, {}, None, None, seconds, errors[0]))
            continue
        values = scores(specs)
        difference = None
        if arm is not arena.arms[0] and reference.keys() == values.keys():
            difference = estimate(np.array([value - reference[seed] for seed, value in values.items()]))
        rows.append(Row(arm.name, values, estimate(list(values.values())), difference, seconds))
    sign = -1 if arena.higher_is_better else 1
    return sorted(rows, key=lambda row: (row.mean is None, sign * row.mean.mean if row.mean else 0.0))


def arena_json(arena: Arena, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON data."""
    return [
        {
            "arm": row.arm,
            "metric": arena.metric,
            "values": {str(seed): value for seed, value in row.values.items()},
            "mean": row.mean.__dict__ if row.mean else None,
            "difference": row.difference.__dict__ if row.difference else None,
            "reference": arena.arms[0].name,
            "seconds": row.seconds,
            "error": row.error,
        }
        for row in rows
    ]


def draw_arena(figure: Any, arena: Arena, rows: Sequence[Row]) -> None:
    """Fill a matplotlib figure: a row an arm, the values by seed as dots, the mean with its 95 % interval."""
    axes = figure.subplots()
    ranked = [row for row in rows if row.mean is not None][::-1]
    for y, row in enumerate(ranked):
        assert row.mean is not None
        values = list(row.values.values())
        axes.plot(values, [y] * len(values), "o", color="#9aa5b1", markersize=3, alpha=0.7)
        axes.plot([row.mean.low, row.mean.high], [y, y], color="#1f5fbf", linewidth=2.5, solid_capstyle="butt")
        axes.plot([row.mean.mean], [y], "o", color="#1f5fbf", markersize=6)
    axes.set_yticks(range(len(ranked)), [row.arm for row in ranked])
    axes.set_xlabel(f"{arena.metric}: values by seed, mean and 95 % interval")
    axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
