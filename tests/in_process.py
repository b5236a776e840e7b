"""An engine without processes, for tests that count or watch what a trial does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paperworks.lab.engines import Progress
from paperworks.lab.execute import execute
from paperworks.lab.records import TrialResult, TrialSpec


class Here:
    """An engine that runs trials in this process."""

    def run(self, specs: Sequence[TrialSpec], progress: Progress | None = None) -> Iterator[TrialResult]:
        """One after another."""
        for spec in specs:
            yield execute(spec)
