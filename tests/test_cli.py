"""The commands print what they should, as JSON too, and exit with the stated codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_papers
import pytest

from paperworks.cli import main
from paperworks.lab import registry
from paperworks.lab.store import open_store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call a command with a store of its own; the papers `fake` and `trouble` exist beside the real ones."""
    made = {"fake": fake_papers.paper_with_claims(), "trouble": fake_papers.trouble_paper("raise")}
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda id: made.get(id) or find(id))
    monkeypatch.setenv("PAPERWORKS_DB", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paperworks", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def as_json(out: str) -> Any:
    return json.loads(out)


def test_list_and_show(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    for paper in registry.papers():
        assert paper.id in out
    listed = as_json(run("list", "--json", "--area", "activations")[1])
    assert {p["id"] for p in listed} == {p.id for p in registry.papers("activations")}
    assert all(p["counts"] == {**dict.fromkeys(p["counts"], 0), "not run": len(p["claims"])} for p in listed)
    code, out, _ = run("show", "ash")
    assert code == 0
    assert "accuracy: ASH - ReLU > 0" in out
    shown = as_json(run("show", "ash", "--json")[1])
    assert shown == next(p for p in listed if p["id"] == "ash"), "a card has one description"
    assert shown["arxiv"] == "2210.11672"
    assert all(claim["criteria"] or claim["bounds"] for claim in shown["claims"])
    assert all(setting["help"] for claim in shown["claims"] for setting in claim["settings"])
    assert any(claim["settings"] for claim in shown["claims"])


def test_what_is_known_of_a_claim_is_shown_as_a_report_has_it(run: Run) -> None:
    run("run", "fake")
    shown = as_json(run("show", "fake", "--json")[1])
    claims = {claim["id"]: claim for claim in shown["claims"]}
    assert shown["counts"] == {"holds": 2, "not run": 1, "inconclusive": 0, "fails": 0, "error": 0}
    assert claims["better"]["verdict"]["seeds"] == 10
    assert [past["status"] for past in claims["better"]["history"]] == ["holds"]
    assert claims["better-on-yours"]["why"] == ["needs a scale of your own (--set scale=...)"]
    assert [setting["name"] for setting in claims["better"]["settings"]] == ["scale", "rounds", "sleep"]


def test_run_prints_verdicts_and_reuses_them(run: Run) -> None:
    code, out, _ = run("run", "fake")
    assert code == 0
    assert "holds" in out
    assert "needs a scale of your own" in out
    assert "21 trials, 0 of them in the store already" in out
    assert "21 trials, 21 of them in the store already" in run("run", "fake")[1]
    code, out, _ = run("run", "fake", "--json", "--set", "scale=2", "--claim", "better-on-yours")
    [verdict] = as_json(out)
    assert (code, verdict["status"], verdict["settings"]) == (0, "holds", {"scale": "2"})
    assert len(verdict["comparisons"][0]["method_values"]) == 10


def test_exit_codes(run: Run) -> None:
    assert run("run", "trouble")[0] == 1, "something ended in an error"
    assert run("run", "fake", "--tier", "smoke")[0] == 0, "an open verdict is no error"
    assert run("run", "fake", "--tier", "smoke", "--strict")[0] == 1
    assert run("run", "fake", "--claim", "observed", "--strict")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nope"), "paper: got 'nope', wanted one of"),
        (("run",), "name one or more papers"),
        (("run", "fake", "--tier", "huge"), "tier: got 'huge', wanted one of smoke"),
        (("run", "fake", "--set", "colour=red"), "setting 'colour' is not known here. Settings: scale"),
        (("run", "fake", "--set", "scale=red"), "setting 'scale': got 'red', wanted float"),
        (("run", "fake", "--set", "scale"), "--set: got 'scale', wanted name=value"),
        (("run", "fake", "--engine", "slurm"), "engine: got 'slurm'"),
        (("run", "fake", "--workers", "0"), "workers: got 0"),
        (("run", "fake", "--claim", "no"), "claim: got 'no', fake has observed"),
        (("run", "--area", "astrology"), "area: got 'astrology', wanted one of"),
        (("run", "fake", "--db", "postgresql://nobody@127.0.0.1:1/none"), "127.0.0.1"),
        (("report", "--format", "docx"), "--format: got 'docx'"),
        (("report", "--tier", "huge"), "tier: got 'huge'"),
        (("bench", "nope"), "benchmark: got 'nope', wanted one of"),
        (("arena", "nope"), "arena: got 'nope', wanted one of activations"),
        (("frobnicate",), "No such command"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_control_that_holds_would_be_an_error(run: Run) -> None:
    code, out, _ = run("run", "fake", "--control")
    assert code == 0
    assert "none may hold" in out
    assert "holds: the check cannot tell" not in out


def test_reports_of_every_form(run: Run, tmp_path: Path) -> None:
    run("run", "ash", "--claim", "generalises-swish")
    code, out, _ = run("report", "--paper", "ash")
    assert code == 0
    page = (tmp_path / "reports" / "paperworks.html").read_text()
    assert "Stochastic Adaptive Activation Function" in page
    assert "report: reports/paperworks.html" in out
    assert "generalises Swish" in run("report", "--format", "markdown", "-o", "-", "--paper", "ash")[1]
    data = as_json(run("report", "--json", "--paper", "ash")[1])
    assert data["papers"][0]["id"] == "ash"
    (tmp_path / "README.md").write_text("# x\n<!-- verdicts:begin -->\nstale table\n<!-- verdicts:end -->\n")
    assert run("report", "--readme")[0] == 0
    readme = (tmp_path / "README.md").read_text()
    assert "stale table" not in readme
    assert "Stochastic Adaptive Activation Function" in readme


SCRIPT = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_papers
from paperworks.lab import registry
registry.find = lambda id: fake_papers.paper_with_claims()
from paperworks.cli import main

if __name__ == "__main__":
    main()
"""


def test_an_interrupt_keeps_what_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    script, db = tmp_path / "cli.py", tmp_path / "store.sqlite"
    script.write_text(SCRIPT)
    keys = _keys()  # before the run starts: the run must not be over by the time that the plan is made
    command = [sys.executable, str(script), "run", "fake", "--db", str(db), "--set", "sleep=1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline, kept = time.monotonic() + 90, 0
    while kept < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
        if db.exists():
            with open_store(db) as store:
                kept = len(store.trials(keys))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    with open_store(db) as store:
        assert 3 <= len(store.trials(keys)) < 21


def _keys() -> list[str]:
    from paperworks.lab.plan import Circumstances, plan

    planned = plan(fake_papers.paper_with_claims(), Circumstances("desk", given={"sleep": "1"}))
    return [key for one in planned for key in one.specs()]
