"""`paperworks bench`: a method beside its peers in one run, time and peak memory as ratios.

A paper's benchmark is one file in ``benchmarks/`` with a function ``cases() -> list[Case]``. Contenders of a case are
timed in interleaved rounds, each round in a random order, so that a drift of the machine meets all of them alike.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paperworks
from paperworks.lab.machine import this_machine

FOLDERS = (
    Path(paperworks.__file__).parent / "_benchmarks",
    Path(paperworks.__file__).parents[2] / "benchmarks",
)


@dataclass(frozen=True)
class Case:
    """Contenders on one piece of work.

    Args:
        name: what is done, with sizes.
        method: name of the contender that is the paper's method; the ratios are method / peer.
        contenders: by name, a function that prepares and returns the call to time. A peer that is not installed
            raises ImportError there and is listed as such.
        floor: what the work cannot do without (bytes moved, floating-point operations), in words.
        floor_bytes: bytes that have to move, for the bandwidth reached; 0 where bytes are not the floor.
    """

    name: str
    method: str
    contenders: Mapping[str, Callable[[], Callable[[], object]]]
    floor: str = ""
    floor_bytes: int = 0


@dataclass
class CaseResult:
    """Seconds by contender (median of rounds), the ratio method / contender with its spread, and peak memory."""

    case: Case
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def find_cases(id: str) -> list[Case]:
    """The cases of a paper's benchmark. Raises ValueError that lists the benchmarks that exist."""
    for folder in FOLDERS:
        path = folder / f"{id.replace('-', '_')}.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location(f"paperworks_benchmark_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            cases: list[Case] = module.cases()
            return cases
    known = sorted({p.stem.replace("_", "-") for f in FOLDERS if f.is_dir() for p in f.glob("*.py")})
    raise ValueError(f"benchmark: got {id!r}, wanted one of {', '.join(known)}")


def run_case(case: Case, *, rounds: int = 20, seed: int = 0) -> CaseResult:
    """Time and peak memory of every contender of a case that is installed."""
    from paperworks.measure.latency import paired_latency
    from paperworks.measure.memory import peak_memory

    result = CaseResult(case)
    calls: dict[str, Callable[[], object]] = {}
    for name, prepare in case.contenders.items():
        try:
            calls[name] = prepare()
        except ImportError as error:
            result.missing[name] = str(error)
    latency = paired_latency(calls, rounds=rounds, seed=seed)
    memory = {name: peak_memory(call) for name, call in calls.items()}
    for name in calls:
        ratio = latency.ratio(case.method, name)
        row: dict[str, Any] = {
            "contender": name,
            "seconds": latency.medians[name],
            "method_over_contender": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
            "peak_memory": memory[name],
            "memory_ratio": memory[case.method] / memory[name] if memory[name] else None,
        }
        if case.floor_bytes:
            row["gib_per_second"] = case.floor_bytes / latency.medians[name] / 2**30
        result.rows.append(row)
    return result


def bench_json(id: str, results: list[CaseResult]) -> dict[str, Any]:
    """The results as JSON data, with the machine."""
    return {
        "benchmark": id,
        "machine": this_machine().__dict__,
        "cases": [
            {
                "case": r.case.name,
                "method": r.case.method,
                "floor": r.case.floor,
                "rows": r.rows,
                "not_installed": r.missing,
            }
            for r in results
        ],
    }
