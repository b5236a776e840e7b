"""Run one trial in this process."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from paperworks.lab.machine import this_machine
from paperworks.lab.nouns import Arm, Protocol, resolve
from paperworks.lab.records import TrialResult, TrialSpec
from paperworks.lab.trial import Trial


def _numbers(found: Any, wanted: Mapping[str, object] | None) -> dict[str, float]:
    """What a protocol or an exact claim returned, as ``{name: float}``. Raises TypeError or ValueError."""
    named = found if isinstance(found, Mapping) else {"": found}
    try:
        numbers = {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError):
        raise TypeError(f"wanted a number or {{name: number}}, got {found!r:.200}") from None
    if wanted is not None and (missing := set(wanted) - set(numbers)):
        raise ValueError(f"the protocol did not return {', '.join(sorted(missing))}; it returned {sorted(numbers)}")
    return numbers


def execute(spec: TrialSpec, progress: Callable[[float, str], None] | None = None) -> TrialResult:
    """Run the trial that `spec` names; an exception becomes a result with status ``"error"`` and its traceback."""
    started = time.perf_counter()
    trial = Trial(spec.seed, spec.tier, spec.device, spec.settings, progress, spec.code)
    try:
        target = resolve(spec.target)
        if isinstance(target, Protocol):
            assert target.function is not None
            arm = Arm(spec.label, spec.arm_target, spec.arm_options)
            metrics = _numbers(target.function(trial, arm), target.metrics)
        else:
            metrics = _numbers(target(trial), None)
        if bad := [name for name, value in metrics.items() if math.isnan(value)]:
            raise ValueError(f"not a number: {', '.join(repr(name) for name in bad)}")
    except Exception:
        return TrialResult(
            spec.key,
            "error",
            error=traceback.format_exc(),
            seconds=time.perf_counter() - started,
            machine=this_machine().id,
        )
    return TrialResult(
        spec.key,
        "done",
        metrics=metrics,
        curves=trial.curves,
        seconds=time.perf_counter() - started,
        machine=this_machine().id,
    )
