"""A real run that is killed goes on where it was and ends with the numbers of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLAIMS = ("more-accurate-than-relu", "more-accurate-than-swish", "trainable-percentile-beats-fixed")
COMMAND = [sys.executable, "-m", "paperworks.cli", "run", "ash", "--tier", "smoke", "--json"]


def command(db: Path) -> list[str]:
    return [*COMMAND, "--db", str(db), *(part for claim in CLAIMS for part in ("--claim", claim))]


def verdicts(db: Path) -> list[dict[str, object]]:
    ran = subprocess.run(command(db), capture_output=True, text=True, check=True)
    return [{k: v[k] for k in ("claim", "status", "comparisons", "trials")} for v in json.loads(ran.stdout)]


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_paper(tmp_path: Path) -> None:
    killed = tmp_path / "killed.sqlite"
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = time.monotonic()
    while time.monotonic() - started < 120 and not (killed.exists() and _kept(killed) >= 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= _kept(killed) < 16
    assert verdicts(killed) == verdicts(tmp_path / "whole.sqlite")


def _kept(db: Path) -> int:
    import sqlite3

    with sqlite3.connect(db) as connection:
        try:
            return int(connection.execute("select count(*) from trials").fetchone()[0])
        except sqlite3.OperationalError:  # the table is not there yet
            return 0
