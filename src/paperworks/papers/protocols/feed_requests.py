"""Readers of a web page, many at once, over plain sockets: a client light enough to share two cores with the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["PATIENCE", "Readings", "read_pages"]

PATIENCE = 30.0  # seconds for one answer


@dataclass
class Readings:
    """What readers saw: seconds for each answer, the bytes, the time of the whole, and in words what went wrong."""

    seconds: list[float] = field(default_factory=list)
    received: int = 0
    wall_seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def milliseconds(self, quantile: float) -> float:
        """The quantile of the times in milliseconds. Raises ValueError where nothing was answered."""
        if not self.seconds:
            raise ValueError(f"readings: got no answer; {'; '.join(self.errors[:3]) or 'nobody asked'}")
        return 1000 * float(np.quantile(self.seconds, quantile))


async def _answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status and length of the answer's body. Raises ValueError for an answer that is no HTTP with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if not status.startswith("HTTP/1.") or "content-length" not in headers:
        raise ValueError(f"got {status!r} without a length, wanted HTTP with one")
    length = int(headers["content-length"])
    await reader.readexactly(length)
    return int(status.split()[1]), length


async def _one_reader(port: int, paths: Sequence[str], pauses: Sequence[float], host: str, seen: Readings) -> None:
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path, pause in zip(paths, pauses, strict=True):
            await asyncio.sleep(pause)
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\nAccept-Encoding: gzip\r\n\r\n"
            started = time.perf_counter()
            writer.write(request.encode("ascii"))
            status, length = await asyncio.wait_for(_answer(reader), PATIENCE)
            seen.seconds.append(time.perf_counter() - started)
            seen.received += length
            if status != 200:
                seen.errors.append(f"{path}: HTTP {status}")
    except (OSError, ValueError, EOFError, TimeoutError) as error:
        seen.errors.append(f"{type(error).__name__}: {error}")
    finally:
        if writer is not None:
            writer.close()


def read_pages(
    port: int, paths: Sequence[str], *, readers: int, each: int, pause: float, seed: int = 0, host: str = ""
) -> Readings:
    """`readers` connections that stay open, each asking for `each` pages of 127.0.0.1 and reading in between.

    Args:
        paths: the pages; a reader draws among them.
        pause: mean seconds from an answer to the next question, exponentially distributed; the first question comes
            within as long.
        host: of the Host header; the address by default.
    """
    rng = np.random.default_rng(seed)
    pauses = rng.exponential(pause, (readers, each)) if pause > 0 else np.zeros((readers, each))
    pauses[:, 0] = rng.random(readers) * pause
    chosen = rng.integers(0, len(paths), (readers, each))
    seen = Readings()

    async def all_readers() -> None:
        started = time.perf_counter()
        await asyncio.gather(
            *(
                _one_reader(port, [paths[i] for i in chosen[n]], pauses[n].tolist(), host or f"127.0.0.1:{port}", seen)
                for n in range(readers)
            )
        )
        seen.wall_seconds = time.perf_counter() - started

    asyncio.run(all_readers())
    return seen
