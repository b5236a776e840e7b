"""Chromium as Debian packages it, driven by Playwright, for the tests that look at pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    f"--{flag}"
    for flag in (
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
]


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def give_up(lack: str) -> NoReturn:
    """Skip, but fail where the continuous integration has to look at the page."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{lack}, and CI=true wants the page looked at")
    pytest.skip(lack)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for the tests of one module: while it is there, its thread has a running event loop."""
    path = browser_path()
    if path is None:
        give_up("no Chromium on this machine")
    try:
        from playwright import sync_api
    except ImportError:
        give_up("playwright is not installed, which drives Chromium")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *(["--no-sandbox"] if root else [])])
        yield launched
        launched.close()
