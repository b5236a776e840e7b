"""Many readers of the day's page at once, served by this machine to itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial

__all__ = ["day_page_readers", "serve_site", "served"]

DAY = "2026-04-24"
START_SECONDS = 60.0


def serve_site(store: str, port: int, keep_pages: bool = True) -> None:
    """Serve the site over `store` on the loopback address until standard input ends, as it does with the process that
    started this one; `keep_pages=False` renders each page anew for every reader."""
    from paperworks.web import Settings
    from paperworks.web.cache import PageCache
    from paperworks.web.server import serve

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if not keep_pages:
        PageCache._keep = lambda *_: None  # type: ignore[method-assign]
    serve(
        Settings(store=store, secret="a secret of this check", base_url=f"http://127.0.0.1:{port}"), "127.0.0.1", port
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as one:
            one.sendall(f"GET /papers/{DAY} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return b"200" in one.recv(100).split(b"\r\n")[0]
    except OSError:
        return False


@contextlib.contextmanager
def served(store: Path, keep_pages: bool = True) -> Iterator[int]:
    """The port of a server process that shows the store. Raises RuntimeError where it does not start."""
    port = _free_port()
    name = serve_site.__name__  # named, so that the fingerprint of the trial follows what it imports
    call = f"from {__name__} import {name}; {name}({str(store)!r}, {port}, {keep_pages})"
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-c", call], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.05)
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def fill(store_path: Path, papers: int) -> None:
    """A store whose day page lists `papers` papers, with the cards and some votes."""
    from datetime import UTC, date, datetime

    from paperworks.data.synthetic_papers import synthetic_papers
    from paperworks.feed import PaperRecord, Store

    with Store(store_path) as store:
        day, now = date.fromisoformat(DAY), datetime(2026, 4, 24, 12, tzinfo=UTC)
        records = [PaperRecord(**one, first_seen=day, rank=n) for n, one in enumerate(synthetic_papers(papers))]
        store.add(records, now)
        for record in records[:10]:
            store.vote(record.key, "a reader", now)


@protocol(
    "day page readers",
    metrics={
        "p99_ms": "99th percentile of the time from a reader's question to the whole answer, in milliseconds",
        "p50_ms": "median of that time",
        "pages_per_second": "answers a second",
        "unanswered": "readers who got no answer",
    },
    settings=(
        Setting("readers", int, Tiers(smoke=20, desk=200), "connections that stay open"),
        Setting("pages", int, Tiers(smoke=3, desk=10), "pages that each of them reads"),
        Setting("pause", float, 0.5, "mean seconds from a reader's answer to the next question"),
        Setting("papers", int, 50, "papers on the page"),
    ),
    exclusive=True,
    time_limit=300.0,
)
def day_page_readers(trial: Trial, arm: Arm) -> dict[str, float]:
    """Client and server share the machine. The arm's target is `served`; its options say how pages are kept.

    A reader whose connection broke, or who was not answered in 30 s, counts as one who waited so long.

    Raises RuntimeError where a reader was answered with an error.
    """
    from paperworks.papers.protocols.feed_requests import PATIENCE, read_pages

    s = trial.settings
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed.sqlite"
        fill(path, s["papers"])
        with arm.build(path) as port:
            trial.progress(0.3, "readers")
            # The first readers of a day, who have the page rendered, are not counted.
            read_pages(port, [f"/papers/{DAY}"], readers=5, each=2, pause=0.1, seed=trial.seed)
            seen = read_pages(
                port, [f"/papers/{DAY}"], readers=s["readers"], each=s["pages"], pause=s["pause"],
                seed=trial.derived_seed("readers") % 2**31,
            )  # fmt: skip
    if refused := [error for error in seen.errors if "HTTP" in error]:
        raise RuntimeError(f"{len(refused)} readers saw an error: {'; '.join(sorted(set(refused))[:3])}")
    answered = len(seen.seconds)
    seen.seconds += [PATIENCE] * len(seen.errors)
    return {
        "p99_ms": seen.milliseconds(0.99),
        "p50_ms": seen.milliseconds(0.5),
        "pages_per_second": answered / seen.wall_seconds,
        "unanswered": float(len(seen.errors)),
    }
