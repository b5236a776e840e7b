"""What a source sent that is no paper, and why: one malformed item is told of and the others are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """An item that was left out: which one it was, and what is wrong with it."""

    item: str
    reason: str


@contextmanager
def leaving_out(item: str, skipped: list[Skipped] | None) -> Iterator[None]:
    """Turn a ValueError of the block into an entry of `skipped`, where there is such a list."""
    try:
        yield
    except ValueError as error:
        if skipped is not None:
            skipped.append(Skipped(" ".join(item.split())[:120], str(error)))
