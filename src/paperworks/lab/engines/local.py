"""Isolated worker processes on this machine.

Each trial has a process of its own, forked from a server that has the heavy packages loaded but has run nothing, so a
start costs milliseconds and no trial sees what another one left behind. A trial that raises, is killed by a signal,
runs out of time or of memory is one ``"error"`` result; the others go on. When the parent disappears, by SIGKILL too,
its workers end: the kernel signals them (Linux) and a pipe that the parent holds open tells them.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, cast

import psutil

from paperworks.lab.engines import Progress
from paperworks.lab.machine import cores, this_machine
from paperworks.lab.records import TrialResult, TrialSpec

PRELOADED = ["numpy", "torch", "torch._dynamo", "scipy.stats", "sklearn.datasets"]
"""`torch._dynamo` is not for compiling: the first optimizer of a process imports it, which takes two seconds."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS = 0.05
OUTPUT_TAIL = 4000


def _context(preload: Iterable[str]) -> BaseContext:
    """The fork server with `preload` imported and one thread a library; `spawn` where forking is unsafe or absent."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *preload])
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _end_with_parent(lifeline: Connection) -> None:
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _child(spec: TrialSpec, channel: Connection, lifeline: Connection, log: str) -> None:
    """Body of a worker process: run the trial, send progress and the result, leave output in `log`."""
    _end_with_parent(lifeline)
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable(file=2)

    import torch

    from paperworks.lab.execute import execute

    torch.set_num_threads(1)
    lock = threading.Lock()

    def progress(fraction: float, text: str) -> None:
        with lock:
            channel.send(("progress", fraction, text))

    result = execute(spec, progress)
    with lock:
        channel.send(("result", result))
    channel.close()
    sys.stdout.flush()
    os._exit(0)  # what a trial started (threads, child processes) does not keep the worker alive


@dataclass
class _Worker:
    spec: TrialSpec
    process: Any
    channel: Connection
    lifeline: Connection
    log: Path
    started: float = field(default_factory=time.perf_counter)
    peak: int = 0
    result: TrialResult | None = None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg") and os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()

    def output(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            # faulthandler ends with a list of every compiled module that is loaded
            return "\n".join(line for line in lines if not line.startswith("Extension modules:"))[-OUTPUT_TAIL:]
        return ""

    def failed(self, why: str) -> TrialResult:
        printed = self.output()
        return TrialResult(
            self.spec.key,
            "error",
            error=why + (f"\n\nlast output of the trial:\n{printed}" if printed.strip() else ""),
            seconds=time.perf_counter() - self.started,
            peak_memory=self.peak,
            machine=this_machine().id,
        )


class LocalEngine:
    """Runs trials in up to `workers` isolated processes (default: one a core), exclusive ones with nothing beside."""

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers: got {workers}, wanted at least 1")
        self.workers = workers or cores()

    def run(self, specs: Sequence[TrialSpec], progress: Progress | None = None) -> Iterator[TrialResult]:
        """Results in the order they finish; exclusive trials come after the others, one by one."""
        waiting = [s for s in specs if not s.exclusive]
        alone = [s for s in specs if s.exclusive]
        context = _context(dict.fromkeys(name for spec in specs for name in spec.preload))
        running: list[_Worker] = []
        with tempfile.TemporaryDirectory(prefix="paperworks-") as folder:
            try:
                while waiting or alone or running:
                    while waiting and len(running) < self.workers:
                        running.append(self._start(context, waiting.pop(0), Path(folder)))
                    if not waiting and not running and alone:
                        running.append(self._start(context, alone.pop(0), Path(folder)))
                    connection.wait([w.channel for w in running] + [w.process.sentinel for w in running], POLL_SECONDS)
                    for worker in list(running):
                        result = self._poll(worker, progress)
                        if result is not None:
                            running.remove(worker)
                            yield result
            finally:
                for worker in running:
                    worker.kill()

    def _start(self, context: BaseContext, spec: TrialSpec, folder: Path) -> _Worker:
        channel, childs_channel = context.Pipe()
        parents_end, lifeline = context.Pipe()
        log = folder / f"{spec.key[:16]}.log"
        process = cast(Any, context).Process(
            target=_child, args=(spec, childs_channel, lifeline, str(log)), name=f"paperworks {spec.label}"
        )
        process.start()
        childs_channel.close()
        lifeline.close()
        return _Worker(spec, process, channel, parents_end, log)

    def _poll(self, worker: _Worker, progress: Progress | None) -> TrialResult | None:
        """The result of a worker that has ended, in whatever way; None while it goes on."""
        with contextlib.suppress(EOFError, OSError):
            while worker.channel.poll():
                kind, *content = worker.channel.recv()
                if kind == "result":
                    worker.result = content[0]
                elif progress is not None:
                    progress(worker.spec, *content)
        with contextlib.suppress(psutil.Error):
            worker.peak = max(worker.peak, psutil.Process(worker.process.pid).memory_info().rss)
        finished = self._outcome(worker)
        if finished is not None:
            worker.kill()
            worker.channel.close()
            worker.lifeline.close()
        return finished

    def _outcome(self, worker: _Worker) -> TrialResult | None:
        spec, code = worker.spec, worker.process.exitcode
        if worker.result is not None:
            return TrialResult(**{**worker.result.__dict__, "peak_memory": worker.peak})
        if code is not None:
            if code < 0:
                name = signal.Signals(-code).name
                hint = " (out of memory?)" if name == "SIGKILL" else ""
                return worker.failed(f"the trial was ended by signal {name}{hint}")
            return worker.failed(f"the trial's process exited with status {code} without a result")
        if time.perf_counter() - worker.started > spec.time_limit:
            return worker.failed(f"the trial ran past its time limit of {spec.time_limit:g} s")
        if worker.peak > spec.memory_limit_gib * 2**30:
            used = worker.peak / 2**30
            return worker.failed(
                f"the trial used {used:.2f} GiB, over its memory limit of {spec.memory_limit_gib:g} GiB"
            )
        return None
