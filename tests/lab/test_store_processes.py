"""Several processes and threads at one database, on SQLite and on PostgreSQL: nothing is lost, nothing told twice."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text

from paperworks.lab.records import TrialResult, TrialSpec, Verdict
from paperworks.lab.store import open_store
from paperworks.lab.store.database import Database

MORNING = datetime(2026, 4, 24, 8, 30, 0, tzinfo=UTC)


def spec(seed: int = 0) -> TrialSpec:
    return TrialSpec("paperworks.papers.ash:accuracy", "f" * 64, seed=seed)


def done(of: TrialSpec) -> TrialResult:
    return TrialResult(of.key, "done", {"accuracy": 0.5}, finished=MORNING)


WRITER = """
import sys
from paperworks.lab.records import TrialResult, TrialSpec, Verdict
from paperworks.lab.store import open_store
url, first, count, every = sys.argv[1], *map(int, sys.argv[2:])
print("ready", flush=True)
sys.stdin.readline()
with open_store(url) as store:
    new = 0
    for seed in range(first, first + count):
        spec = TrialSpec("m:f", "code", seed=seed)
        store.put_trial(spec, TrialResult(spec.key, "done", {"seed": float(seed)}, error="é" * 2000))
        print(spec.key, flush=True)
        if every and seed % every == 0:
            new += store.put_verdict(Verdict("p", "c", "exact", "holds", "desk", "cpu", reason=str(seed)))
            store.put_verdict(Verdict("p", f"same {seed - first}", "exact", "holds", "desk", "cpu"))
    print("new", new, flush=True)
"""


def writer(url: str, first: int, count: int, every: int = 0) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WRITER, url, str(first), str(count), str(every)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def start_together(processes: "list[subprocess.Popen[str]]") -> None:
    """Imports done, all are let go at once: the first thing they do is to open the new database."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_two_processes_writing_at_once_lose_nothing(store_url: str) -> None:
    processes = [writer(store_url, 0, 500, every=10), writer(store_url, 10_000, 500, every=10)]
    start_together(processes)
    printed = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    keys = [word for words in printed for word in words if len(word) == 64]
    with open_store(store_url) as store:
        assert len(store.trials(keys)) == len(keys) == 1000
        told = store.history("p", "c")
        assert [words[-1] for words in printed] == ["50", "50"]
        assert sorted(int(v.reason) for v in told) == [*range(0, 500, 10), *range(10_000, 10_500, 10)]
        # the same answer from both is one verdict
        assert [len(store.history("p", f"same {seed}")) for seed in range(0, 500, 10)] == [1] * 50
    with closing(Database(store_url)) as database, database.read() as opened:
        numbers = opened.execute(text("SELECT number FROM verdicts WHERE claim = 'c' ORDER BY number")).scalars()
        assert list(numbers) == list(range(1, 101))


def test_processes_that_open_a_new_database_at_once(store_url: str) -> None:
    processes = [writer(store_url, 10 * n, 1) for n in range(3)]
    start_together(processes)
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    with open_store(store_url) as store:
        assert len(store.trials([words[0] for words in printed])) == 3


def test_a_killed_process_loses_at_most_the_write_it_was_in(store_url: str) -> None:
    process = writer(store_url, 0, 100_000)
    start_together([process])
    assert process.stdout is not None
    keys = [process.stdout.readline().strip() for _ in range(60)]
    process.send_signal(signal.SIGKILL)
    keys += [line for line in process.communicate()[0].splitlines() if len(line) == 64]
    assert process.returncode == -signal.SIGKILL
    with open_store(store_url) as store:
        assert len(store.trials(keys)) == len(keys) < 100_000
        store.put_trial(spec(), done(spec()))
        assert store.trial(spec().key) == done(spec())
    if store_url.startswith("sqlite"):
        with closing(Database(store_url)) as database, database.read() as opened:
            assert opened.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"


def test_threads_share_a_store(store_url: str) -> None:
    store = open_store(store_url)

    def work(worker: int) -> int:
        for seed in range(25):
            one = spec(100 * worker + seed)
            store.put_trial(one, done(one))
            assert store.trial(one.key) == done(one)
        return sum(store.put_verdict(Verdict("p", f"c{n}", "exact", "holds", "desk", "cpu")) for n in range(10))

    with ThreadPoolExecutor(12) as pool:
        appended = list(pool.map(work, range(12)))
    assert sum(appended) == 10
    assert len(store.trials([spec(100 * worker + seed).key for worker in range(12) for seed in range(25)])) == 300


def test_threads_open_a_new_database_at_once(store_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(open_store, [store_url] * 6))
    for number, store in enumerate(stores):
        store.put_trial(spec(number), done(spec(number)))
    assert len(stores[0].trials([spec(n).key for n in range(6)])) == 6
    for store in stores:
        store.close()


def test_threads_open_databases_of_their_own_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for store in pool.map(open_store, [tmp_path / f"{number}.sqlite" for number in range(12)]):
            store.put_trial(spec(), done(spec()))
            assert store.trial(spec().key) == done(spec())
            store.close()
