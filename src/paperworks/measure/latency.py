"""Compare the time of several functions in one run, so that what disturbs one disturbs all.

On a shared machine the time of one and the same function drifts by more than most differences of interest. So the
contenders are timed in rounds, each once a round in an order drawn anew, and compared within the round: the ratio of
two times of one round is free of the drift between rounds.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["LatencyResult", "Ratio", "median_interval", "paired_latency"]

_MAX_CALLS = 1 << 24


@dataclass(frozen=True)
class Ratio:
    """Time of a contender over the reference's, over the rounds.

    Attributes:
        median: of the per-round ratios.
        low, high: 95 % interval of that median (order statistics, no assumption on the distribution).
        q25, q75: quartiles of the per-round ratios.
    """

    median: float
    low: float
    high: float
    q25: float
    q75: float


@dataclass(frozen=True)
class LatencyResult:
    """Times of one run of `paired_latency`.

    Attributes:
        seconds: for each contender, seconds a call, one entry a round.
        calls: for each contender, calls a round.
        reference: the contender the ratios are relative to.
    """

    seconds: dict[str, tuple[float, ...]]
    calls: dict[str, int]
    reference: str

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds a call of each contender."""
        return {name: statistics.median(seconds) for name, seconds in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, Ratio]:
        """`ratio(name)` of each contender; the reference's own is 1."""
        return {name: self.ratio(name) for name in self.seconds}

    def ratio(self, name: str, reference: str | None = None) -> Ratio:
        """Ratio of the times of `name` to those of `reference` (the result's own by default), paired by round.

        Raises:
            ValueError: a name is none of the contenders.
        """
        reference = self.reference if reference is None else reference
        for contender in (name, reference):
            if contender not in self.seconds:
                raise ValueError(f"got {contender!r}, want one of the contenders: {', '.join(self.seconds)}")
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[reference], strict=True)]
        q25, _, q75 = statistics.quantiles(ratios, n=4, method="inclusive")
        return Ratio(statistics.median(ratios), *median_interval(ratios), q25, q75)


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Interval that holds the median of the distribution of `values` with probability `level` or more.

    The k-th smallest and k-th largest of n values enclose the median unless fewer than k of them fall on one side of
    it: probability 2 * sum_{i<k} C(n, i) / 2^n. Takes the largest k that keeps this within 1 - `level`.

    Raises:
        ValueError: too few values for that level even with the smallest and the largest (six are needed for 0.95).
    """
    n = len(values)
    outside, k = 0.0, 0
    while k < n:
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - level:
            break
        k += 1
    if k == 0:
        raise ValueError(f"values: got {n}, too few for an interval of level {level}")
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def paired_latency(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    min_round_time: float = 0.01,
    reference: str | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> LatencyResult:
    """Time the contenders in interleaved rounds, in random order within each round.

    Args:
        contenders: name -> function of no argument. What they do with threads, gradients and devices is up to them;
            the garbage collector is off while they are timed.
        rounds: at least 6, the fewest that have a 95 % interval.
        warmup: calls of each contender before anything is timed.
        min_round_time: seconds; each contender is called as often a round as this takes (found by doubling once
            after the warm-up), so that the clock's resolution does not matter.
        reference: the contender that the ratios are relative to; the first by default.
        seed: of the order within the rounds.
        clock: gives seconds.
        synchronize: called before each reading of the clock; by default waits for CUDA where it is in use.

    Raises:
        ValueError: no contenders, an unknown reference, a number out of range.
        TypeError: a contender is not callable.
        RuntimeError: the clock stands still however often a contender is called.
    """
    if not contenders:
        raise ValueError("contenders: got none, want at least one")
    for name, function in contenders.items():
        if not callable(function):
            raise TypeError(f"contenders[{name!r}]: got {type(function).__name__}, want a function of no argument")
    reference = next(iter(contenders)) if reference is None else reference
    if reference not in contenders:
        raise ValueError(f"reference: got {reference!r}, want one of {', '.join(contenders)}")
    if rounds < 6:
        raise ValueError(f"rounds: got {rounds}, want at least 6 (fewer have no 95 % interval)")
    if warmup < 0:
        raise ValueError(f"warmup: got {warmup}, want 0 or more")
    if not min_round_time >= 0:
        raise ValueError(f"min_round_time: got {min_round_time}, want 0 or more seconds")
    synchronize = _wait_for_cuda if synchronize is None else synchronize

    def timed(function: Callable[[], object], calls: int) -> float:
        synchronize()
        start = clock()
        for _ in range(calls):
            function()
        synchronize()
        return clock() - start

    order = list(contenders)
    shuffler = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with _no_garbage_collection():
        for function in contenders.values():
            for _ in range(warmup):
                function()
        calls = {name: _enough_calls(name, f, timed, min_round_time) for name, f in contenders.items()}
        for _ in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                seconds[name].append(timed(contenders[name], calls[name]) / calls[name])
    for name, times in seconds.items():
        if min(times) <= 0:
            raise RuntimeError(f"contenders[{name!r}]: took no measurable time in a round; raise min_round_time")
    return LatencyResult({name: tuple(times) for name, times in seconds.items()}, calls, reference)


def _enough_calls(
    name: str,
    function: Callable[[], object],
    timed: Callable[[Callable[[], object], int], float],
    min_round_time: float,
) -> int:
    calls = 1
    while True:
        elapsed = timed(function, calls)
        if elapsed > 0 and elapsed >= min_round_time:
            return calls
        if calls >= _MAX_CALLS:
            raise RuntimeError(f"contenders[{name!r}]: {calls} calls took {elapsed} s by the clock")
        calls *= 2


def _wait_for_cuda() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
