"""The site behind uvicorn, in one process or several."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from paperworks.web.app import create_app
from paperworks.web.settings import Settings

GRACE_SECONDS = 10
SWITCH_SECONDS = 2e-4
HANDED_OVER = "PAPERWORKS_SITE"
"""Where worker processes find the settings: a file that only this user may read, there while the server runs."""


def application(settings: Settings) -> ASGIApp:
    """The site, which gets ready for its first readers in the background."""
    app = create_app(settings)

    def warm() -> None:
        # What is computed meanwhile would keep the interpreter from the answers for 5 ms at each of their reads and
        # writes: two hundred readers would wait for a second.
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            app.state.site.warm()
        finally:
            sys.setswitchinterval(usual)

    threading.Thread(target=warm, name="warm", daemon=True).start()
    return app


def worker() -> ASGIApp:
    """The site in a worker process of `serve`."""
    return application(pickle.loads(Path(os.environ[HANDED_OVER]).read_bytes()))


def serve(settings: Settings, host: str, port: int, workers: int = 1, reload: bool = False) -> None:
    """Serve the site until the process is told to stop; requests that have begun are finished.

    Args:
        settings: of the site.
        host: address to bind.
        port: to bind.
        workers: processes; each makes its own application, with its own connections and rate limits. Runs from the
            page need one process, the one that has the run.
        reload: start anew when the code changes, for those who work on it.

    Raises:
        ValueError: a port or a number of workers that cannot be, more than one together with `allow_runs`, or settings
            that cannot be given to other processes.
        OSError: the address cannot be bound.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port: got {port}, wanted one from 0 to 65535")
    if workers < 1:
        raise ValueError(f"workers: got {workers}, wanted at least 1")
    if workers > 1 and settings.allow_runs:
        raise ValueError(f"workers: got {workers}, wanted 1 where runs may be started from the page")
    how: dict[str, Any] = {
        "host": host,
        "port": port,
        "factory": True,
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "proxy_headers": settings.proxy_headers,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "h11_max_incomplete_event_size": 32 * 1024,
    }
    if workers == 1 and not reload:
        server = uvicorn.Server(uvicorn.Config(lambda: application(settings), **how))
        try:
            server.run()
        except SystemExit as error:  # how uvicorn says that the address is taken
            raise OSError(f"could not serve at {host}:{port}; the log above says why") from error
        return
    if workers > 1:
        settings = replace(settings, allow_runs=False)
    try:
        handed_over = pickle.dumps(settings)
    except Exception as error:
        raise ValueError(f"settings: cannot be given to other processes: {error}") from error
    with tempfile.TemporaryDirectory(prefix="paperworks-") as folder:
        path = Path(folder, "settings")
        path.write_bytes(handed_over)
        os.environ[HANDED_OVER] = str(path)
        uvicorn.run("paperworks.web.server:worker", workers=workers, reload=reload, **how)
