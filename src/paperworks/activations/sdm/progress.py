"""A progress bar for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar of `total` steps while the block runs; the yielded function makes one step."""
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
