"""Workers are isolated: whatever a trial does is one error, and nothing survives the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import fake_papers
import psutil
import pytest

from paperworks.lab.engines import make_engine
from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.plan import Circumstances, plan
from paperworks.lab.records import TrialResult, TrialSpec

TESTS = Path(__file__).parents[1]
WORDS = {
    "raise": "RuntimeError: the arm is broken",
    "segfault": "ended by signal SIGSEGV",
    "exit": "exited with status 3",
    "hang": "past its time limit of 12 s",
    "memory": "over its memory limit of 1 GiB",
    "kill": "ended by signal SIGKILL",
    "nan": "not a number: 'score'",
    "missing": "did not return score",
}


def specs_of(*kinds: str) -> dict[str, TrialSpec]:
    planned = plan(fake_papers.trouble_paper(*kinds), Circumstances("smoke"))
    return {key: spec for one in planned for key, spec in one.specs().items()}


def test_every_trouble_is_one_error_and_the_others_go_on() -> None:
    specs = specs_of(*WORDS)
    results = {r.key: r for r in LocalEngine(2).run(list(specs.values()))}
    assert set(results) == set(specs)
    for key, spec in specs.items():
        if spec.label in WORDS:
            assert results[key].status == "error"
            assert WORDS[spec.label] in results[key].error
        else:
            assert results[key].status == "done", results[key].error
    segfault = next(r for k, r in results.items() if specs[k].label == "segfault")
    assert "string_at" in segfault.error, "the Python traceback of the crash is kept"


def run_noise(workers: int, order: int) -> dict[str, TrialResult]:
    planned = plan(fake_papers.paper_with_claims(), Circumstances("smoke"))
    specs = {key: spec for one in planned for key, spec in one.specs().items()}
    return {r.key: r for r in LocalEngine(workers).run(list(specs.values())[::order])}


def test_the_same_seed_gives_the_same_numbers_in_any_order_with_any_number_of_workers() -> None:
    first, second = run_noise(1, 1), run_noise(3, -1)
    assert {k: dict(r.metrics) for k, r in first.items()} == {k: dict(r.metrics) for k, r in second.items()}
    assert {k: dict(r.curves) for k, r in first.items()} == {k: dict(r.curves) for k, r in second.items()}


def test_progress_is_reported_and_output_stays_out_of_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    spec = next(s for s in specs_of().values())
    heard: list[tuple[float, str]] = []
    [result] = LocalEngine(1).run([spec], lambda spec, fraction, text: heard.append((fraction, text)))
    assert result.status == "done"
    assert (0.5, "half way") in heard
    assert capfd.readouterr().out == ""


def test_exclusive_trials_run_with_nothing_beside_them() -> None:
    some = list(specs_of().values())[:4]
    alone = [replace(s, exclusive=True, seed=s.seed + 50, settings={**s.settings, "sleep": 0.2}) for s in some[:3]]
    results = list(LocalEngine(4).run(alone + some))
    spans = {r.key: (r.finished.timestamp() - r.seconds, r.finished.timestamp()) for r in results}
    for spec in alone:
        start, end = spans.pop(spec.key)
        assert all(end <= s + 0.01 or e <= start + 0.01 for s, e in spans.values())


def test_closing_the_iterator_ends_the_workers() -> None:
    others = set(_workers(psutil.Process()))  # a database server that another test uses
    specs = list(specs_of("hang", "raise").values())
    results = LocalEngine(2).run(specs)
    next(results)
    assert set(_workers(psutil.Process())) - others
    results.close()  # type: ignore[attr-defined]
    left = set(_workers(psutil.Process())) - others
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _workers(process: psutil.Process) -> list[psutil.Process]:
    """Descendants that run a trial: children of the fork server."""
    return [child for server in process.children() for child in server.children()]


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import fake_papers
from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.plan import Circumstances, plan

if __name__ == "__main__":
    planned = plan(fake_papers.trouble_paper("hang"), Circumstances("smoke"))
    list(LocalEngine(1).run([s for one in planned for s in one.specs().values() if s.label == "hang"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process table of Linux")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_a_killed_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=str(TESTS)))
    parent = subprocess.Popen([sys.executable, str(script)])
    found: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not found and time.monotonic() < deadline:
        time.sleep(0.1)
        found = _workers(psutil.Process(parent.pid))
    family = psutil.Process(parent.pid).children(recursive=True)
    assert found
    os.kill(parent.pid, how)
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_unknown_engines_and_worker_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="engine: got 'slurm', wanted 'local' or 'ray'"):
        make_engine("slurm")
    with pytest.raises(ValueError, match="workers: got 0"):
        make_engine("local", workers=0)
