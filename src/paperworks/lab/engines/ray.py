"""The same trials on a Ray cluster: each Ray task runs its trial through the local engine, with the same isolation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from paperworks.lab.engines import Progress
from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.records import TrialResult, TrialSpec


def _run_one(spec: TrialSpec, path: list[str]) -> TrialResult:
    sys.path += [entry for entry in path if entry not in sys.path]
    return next(iter(LocalEngine(workers=1).run([spec])))


class RayEngine:
    """Runs trials as Ray tasks on the cluster at `address`; None uses a cluster that is connected, or starts one here.

    A trial takes one CPU; an exclusive one takes all CPUs of a node. `paperworks` (and the user's own modules) have to
    be installed on the nodes.
    """

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise ImportError("the ray engine wants Ray: pip install 'paperworks[ray]'") from None
        self._ray: Any = ray
        self.address = address

    def run(self, specs: Sequence[TrialSpec], progress: Progress | None = None) -> Iterator[TrialResult]:
        """Results in the order they finish."""
        ray = self._ray
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="error")
        whole_node = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        # A crash belongs to the trial: the lab reports it, Ray does not try again.
        task = ray.remote(max_retries=0)(_run_one)
        waiting: dict[Any, TrialSpec] = {}
        try:
            for spec in sorted(specs, key=lambda s: s.exclusive):
                options = task.options(num_cpus=whole_node if spec.exclusive else 1, name=spec.label or "trial")
                waiting[options.remote(spec, sys.path)] = spec
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=1)
                spec = waiting.pop(ready[0])
                try:
                    yield ray.get(ready[0])
                except ray.exceptions.RayError as error:
                    yield TrialResult(spec.key, "error", error=f"Ray could not finish the trial: {error}")
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
            if started_here:
                ray.shutdown()
