"""Engines carry trials out: `local` in isolated worker processes, `ray` on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from paperworks.lab.records import TrialResult, TrialSpec

Progress = Callable[[TrialSpec, float, str], None]


class Engine(Protocol):
    """Runs trials and yields each result as it is there; closing the iterator stops what is still running."""

    def run(self, specs: Sequence[TrialSpec], progress: Progress | None = None) -> Iterator[TrialResult]:
        """Results of `specs` in the order they finish. A trial that dies in any way is one ``"error"`` result."""
        ...


def make_engine(name: str, *, workers: int | None = None, address: str | None = None) -> Engine:
    """The engine of that name. Raises ValueError for an unknown one, ImportError where its package is missing."""
    if name == "local":
        from paperworks.lab.engines.local import LocalEngine

        return LocalEngine(workers)
    if name == "ray":
        from paperworks.lab.engines.ray import RayEngine

        return RayEngine(address)
    raise ValueError(f"engine: got {name!r}, wanted 'local' or 'ray'")
