"""Serving: what is refused before it starts, and several processes that share a store."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from web.web_site import fill

from paperworks.web import Settings
from paperworks.web.server import serve


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "site.sqlite", catalogue=False)
    for wrong, said in (({"port": 70000}, "port"), ({"port": 0, "workers": 0}, "workers")):
        with pytest.raises(ValueError, match=said):
            serve(settings, "127.0.0.1", **wrong)
    with pytest.raises(ValueError, match="wanted 1 where runs"):
        serve(Settings(owner_token="t", allow_runs=True), "127.0.0.1", 0, workers=2)
    with pytest.raises(ValueError, match="other processes"):
        serve(Settings(now=lambda: None), "127.0.0.1", 0, workers=2)  # type: ignore[arg-type, return-value]
    assert not (tmp_path / "site.sqlite").exists()


def test_an_address_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="could not serve"):
            serve(Settings(store=tmp_path / "a.sqlite", catalogue=False), "127.0.0.1", taken.getsockname()[1])


@pytest.mark.slow
def test_several_processes_serve_one_site(tmp_path: Path) -> None:
    fill(tmp_path / "site.sqlite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        "from paperworks.web import Settings; from paperworks.web.server import serve\n"
        f"store = {str(tmp_path / 'site.sqlite')!r}\n"
        "settings = Settings(store=store, secret='shared', owner_token='t', catalogue=False)\n"
        f"if __name__ == '__main__': serve(settings, '127.0.0.1', {port}, workers=2)\n"
    )
    script = tmp_path / "serve_it.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        base, page = f"http://127.0.0.1:{port}", None
        deadline = time.monotonic() + 200
        while page is None:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:
                page = requests.get(f"{base}/subscribe", timeout=5)
            except requests.ConnectionError:
                time.sleep(0.2)
        # A form that one process gave is taken by any.
        token = re.search(r'name="csrf" value="(\w+)"', page.text)
        assert token
        for _ in range(5):
            data = {"csrf": token[1], "email": "nobody"}
            assert requests.post(f"{base}/subscribe", data=data, cookies=page.cookies, timeout=10).status_code == 422
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert not list(tmp_path.glob("paperworks-*"))  # the settings that were handed over
