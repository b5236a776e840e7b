"""A real PostgreSQL server for the tests that need one.

`postgres_url` is the URL of an empty database; `store_url` runs a test on such a database and on an SQLite file. The
server is started from the machine's own PostgreSQL binaries when the first test asks for it, once in each pytest
worker, with its data in a temporary folder and reached by a Unix socket in the same folder. Where PostgreSQL is not
installed those tests are skipped, and with CI set they fail.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROLE = "paperworks"
SCRATCH = "scratch"
START_SECONDS = 60


def binaries() -> Path | None:
    """The folder of `postgres` and `initdb`: the one in PATH, else the newest of Debian's."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((p.parent for p in installed), key=lambda p: float(p.parent.name), default=None)


def missing() -> str | None:
    """What keeps the server from running here, or None."""
    if binaries() is None:
        return "PostgreSQL is not installed: no `postgres` in PATH or /usr/lib/postgresql (apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        return f"psycopg is not installed ({error}): pip install 'paperworks[postgres]'"
    return None


class Server:
    """A server that listens only on a socket in its own folder, and forgets everything when it stops."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.log = self.folder / "log"
        found = binaries()
        assert found is not None
        self.binaries = found
        self.process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = names.get("postgres") or names["nobody"]
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def url(self, database: str) -> str:
        """Of a database on this server."""
        return f"postgresql://{ROLE}@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run one statement outside a transaction; its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Make the data folder if there is none, start the server and wait until it answers."""
        data = self.folder / "data"
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
        with self.log.open("ab") as log:
            options = {"cwd": self.folder, "env": environment, "stdout": log, "stderr": log, **self._as}
            if not data.exists():
                initdb = [
                    str(self.binaries / "initdb"),
                    "-D",
                    str(data),
                    "-U",
                    ROLE,
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "--no-sync",
                ]
                self._check(subprocess.run(initdb, check=False, **options).returncode == 0)
            # what a power failure would lose is nobody's loss here
            quick = [f"-c{name}=off" for name in ("fsync", "synchronous_commit", "full_page_writes")]
            listen = [f"-cunix_socket_directories={self.folder}", "-clisten_addresses=", "-cmax_connections=60"]
            # a session of its own: an interrupt at the terminal is for pytest, which then stops the server
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(data), *listen, *quick], start_new_session=True, **options
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            self._check(self.process.poll() is None and time.monotonic() < deadline)
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server: connections are ended, the data stays until `remove`."""
        if self.process is None:
            return
        self.process.send_signal(2)  # "fast shutdown"
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def remove(self) -> None:
        """Stop, and delete the data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        import psycopg

        try:
            return self.execute("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def _check(self, fine: bool) -> None:
        if not fine:
            raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text(errors='replace')[-4000:]}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The worker's server."""
    if reason := missing():
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres_server: Server) -> str:
    """The URL of an empty database: what earlier tests left in it is dropped, far quicker than a new database."""
    if not postgres_server.execute(f"SELECT 1 FROM pg_database WHERE datname = '{SCRATCH}'"):
        postgres_server.execute(f"CREATE DATABASE {SCRATCH}")
    others = f"FROM pg_stat_activity WHERE datname = '{SCRATCH}'"
    postgres_server.execute(f"SELECT pg_terminate_backend(pid, 5000) {others}")
    postgres_server.execute(f"ALTER DATABASE {SCRATCH} RESET ALL")
    for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
        postgres_server.execute(statement, SCRATCH)
    return postgres_server.url(SCRATCH)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database of either kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'store.sqlite'}"
