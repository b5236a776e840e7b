"""Runs started from the page: a paper's claims at a tier, one run at a time, watched by any number of readers.

A run has the lab's runner, its local engine and a store of its own, in one thread beside the server's. What it finished
is kept when it is stopped, and it does not depend on who watches. Nothing of a request reaches the runner but a paper
that is carried, ids of its claims, and the name of a tier.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from paperworks.feed.store import Store
from paperworks.lab import registry
from paperworks.lab.engines import Progress
from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.machine import cores
from paperworks.lab.nouns import Claim, Paper
from paperworks.lab.records import Machine, TrialResult, TrialSpec, Verdict
from paperworks.lab.report.wording import headline, plural
from paperworks.lab.runner import Watcher, choose_device, run
from paperworks.web.models import RunRequest, RunState, State

__all__ = ["FINAL", "Refused", "Runs"]

log = logging.getLogger(__name__)

KEPT, WAITING = 50, 20
"""Runs that are remembered, and runs that may wait."""

FINAL: tuple[State, ...] = ("done", "failed", "stopped")
MEASURED = ("holds", "inconclusive", "fails")
PAUSE_SECONDS = 0.1
"""Between two states that a watcher is sent."""


class Refused(HTTPException):
    """A run that cannot be started here, or not now: answered with 409."""

    def __init__(self, why: str) -> None:
        super().__init__(409, why)


class _Stop(Exception):
    """Ends a run from within."""


@dataclass
class _Run:
    id: str
    paper: Paper
    tier: str
    claims: list[str] | None
    started: datetime
    finished: datetime | None = None
    state: State = "waiting"
    total: int = 0
    done: int = 0
    running: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    version: int = 0
    listeners: set[Callable[[], None]] = field(default_factory=set)

    def snapshot(self) -> RunState:
        names = ("id", "tier", "claims", "state", "total", "done", "message", "started", "finished")
        values = {name: getattr(self, name) for name in names}
        running = list(self.running.values())
        return RunState(**values, paper=self.paper.id, running=running, verdicts=dict(self.verdicts))


class _Engine(LocalEngine):
    """The local engine, which tells of each trial that starts and ends all when told to stop."""

    def __init__(self, workers: int, stop: threading.Event, started: Callable[[TrialSpec], None]) -> None:
        super().__init__(workers)
        self.stop, self.started = stop, started

    def _start(self, context: Any, spec: TrialSpec, folder: Path) -> Any:
        self.started(spec)
        return super()._start(context, spec, folder)

    def _poll(self, worker: Any, progress: Progress | None) -> TrialResult | None:
        # Asked many times a second of every trial, also of one that says nothing.
        if self.stop.is_set():
            raise _Stop
        return super()._poll(worker, progress)


class _Keeper:
    """The lab's store; a measured verdict that is new to it is an event of the paper in the feed's."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self.store, self.now = store, now

    def trials(self, keys: Iterable[str]) -> dict[str, TrialResult]:
        return self.store.lab.trials(keys)

    def put_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        self.store.lab.put_trial(spec, result)

    def put_machine(self, machine: Machine) -> None:
        self.store.lab.put_machine(machine)

    def put_verdict(self, verdict: Verdict) -> bool:
        new = self.store.lab.put_verdict(verdict)
        if new and verdict.status in MEASURED and self.store.number(verdict.paper) is not None:
            self.store.event(verdict.paper, "run", self.now())
        return new


class Runs:
    """The runs of this process, the newest fifty; one is carried out, others wait. Threads may share it.

    Args:
        store_url: of the database: each run opens it for itself.
        now: the clock.
        find: the card of an id, `registry.find` by default; raises ValueError for one that is not carried.
        workers: trials at a time; by default a core is left to the pages.
    """

    def __init__(
        self,
        store_url: str | Path | None,
        now: Callable[[], datetime],
        *,
        find: Callable[[str], Paper] | None = None,
        workers: int | None = None,
    ) -> None:
        self.store_url, self.now, self.find = store_url, now, find or registry.find
        self.workers = workers or max(1, cores() - 1)
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="paperworks-run")
        self._closed = False

    def start(self, request: RunRequest) -> RunState:
        """Start a run, or let it wait for the one before it.

        Raises:
            ValueError: a paper that is not carried, a claim that it does not have, no claim, or an unknown tier.
            Refused: the tier wants a device that is not here, too many runs wait, or the server ends.
        """
        paper = self.find(request.paper)
        claims = None if request.claims is None else list(dict.fromkeys(request.claims))
        if claims is not None:
            if not claims:
                raise ValueError("claims: got none, wanted ids of claims, or null for all")
            for id in claims:
                paper.claim(id)
        if request.tier == "gpu":
            try:
                choose_device(request.tier, None)
            except ValueError as error:
                raise Refused(str(error).partition(";")[0]) from None
        made = _Run(secrets.token_hex(8), paper, request.tier, claims, self.now())
        with self._lock:
            if self._closed:
                raise Refused("The server is about to end.")
            if sum(one.state == "waiting" for one in self._runs.values()) >= WAITING:
                raise Refused(f"{WAITING} runs wait already.")
            self._runs[made.id] = made
            self._forget()
            self._pool.submit(self._carry_out, made)
            return made.snapshot()

    def get(self, id: str) -> RunState:
        """The run of that id as it is now. Raises LookupError."""
        run = self._find(id)
        with self._lock:
            return run.snapshot()

    def all(self) -> list[RunState]:
        """Every run, the newest first."""
        with self._lock:
            return [run.snapshot() for run in reversed(self._runs.values())]

    def stop(self, id: str) -> RunState:
        """End a run: the trials that it finished are kept. One that has ended stays as it is. Raises LookupError."""
        run = self._find(id)
        run.stop.set()
        self._end(run, "waiting", "stopped", "Stopped before it began.")
        return self.get(id)

    async def events(self, id: str, silence: float | None = None) -> AsyncGenerator[RunState | None]:
        """The state of a run, at once and whenever it is another, up to the final one.

        A slow reader misses states in between, never the last. None is given after `silence` seconds without news.
        Raises LookupError.
        """
        run, seen = self._find(id), -1
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody watches any more
                loop.call_soon_threadsafe(news.set)

        with self._lock:
            run.listeners.add(tell)
        try:
            while True:
                news.clear()
                with self._lock:
                    version, state = run.version, run.snapshot()
                if version != seen:
                    seen = version
                    yield state
                    if state.state in FINAL:
                        return
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                try:
                    await asyncio.wait_for(news.wait(), silence)
                except TimeoutError:
                    yield None
        finally:
            with self._lock:
                run.listeners.discard(tell)

    def close(self) -> None:
        """Stop what runs and what waits, and wait for the end of it; closing twice is no error."""
        with self._lock:
            self._closed = True
            ids = list(self._runs)
        for id in reversed(ids):  # those that wait before the one that they wait for
            self.stop(id)
        self._pool.shutdown()

    def _find(self, id: str) -> _Run:
        with self._lock:
            if id in self._runs:
                return self._runs[id]
        raise LookupError(f"run: there is none with the id {id[:40]!r}")

    def _forget(self) -> None:
        ended = [id for id, run in self._runs.items() if run.state in FINAL]
        for id in ended[: max(0, len(self._runs) - KEPT)]:
            del self._runs[id]

    def _change(self, run: _Run, **values: Any) -> None:
        """Set what is given and tell those who watch."""
        with self._lock:
            for name, value in values.items():
                setattr(run, name, value)
            run.version += 1
            for tell in run.listeners:
                tell()

    def _move(self, run: _Run, before: State, after: State) -> bool:
        """Bring a run from one state to the next, unless it is in another by now."""
        with self._lock:
            if run.state != before:
                return False
            run.state = after
            return True

    def _end(self, run: _Run, before: State, after: State, message: str = "") -> None:
        if self._move(run, before, after):
            self._change(run, message=message, running={}, finished=self.now())

    def _carry_out(self, run: _Run) -> None:
        """The body of a run, in the pool's thread."""
        if not self._move(run, "waiting", "running"):
            return
        self._change(run, started=self.now())
        try:
            with Store(self.store_url) as store:
                self._measure(run, store)
        except _Stop:
            self._end(run, "running", "stopped", f"Stopped. {plural(run.done, 'finished trial')} of {run.total} kept.")
        except Exception as error:
            log.exception("run %s of %s failed", run.id, run.paper.id)
            self._end(run, "running", "failed", headline("".join(traceback.format_exception(error))))
        else:
            self._end(run, "running", "done")

    def _measure(self, this: _Run, store: Store) -> None:
        def check() -> None:
            if this.stop.is_set():
                raise _Stop

        def planned(total: int, reused: int) -> None:
            check()
            self._change(this, total=this.total + total, done=this.done + reused)

        def started(spec: TrialSpec) -> None:
            self._change(this, running=this.running | {spec.key: _name(spec)})

        def progress(spec: TrialSpec, fraction: float, text: str) -> None:
            said = f"{_name(spec)}: {fraction:.0%}" + (f", {text}" if text else "")
            self._change(this, running=this.running | {spec.key: said})

        def finished(spec: TrialSpec, result: TrialResult) -> None:
            left = {key: said for key, said in this.running.items() if key != spec.key}
            self._change(this, running=left, done=this.done + 1)

        def verdict(paper: Paper, claim: Claim, given: Verdict) -> None:
            self._change(this, verdicts=this.verdicts | {claim.id: given.status})

        engine = _Engine(self.workers, this.stop, started)
        watcher = Watcher(planned, progress, finished, verdict)
        run([this.paper], _Keeper(store, self.now), engine, tier=this.tier, claims=this.claims, watcher=watcher)


def _name(spec: TrialSpec) -> str:
    return f"{spec.label}, seed {spec.seed}" if spec.arm_target else spec.label
