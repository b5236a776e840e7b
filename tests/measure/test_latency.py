"""Paired latency, on a clock that the contenders themselves move: nothing here depends on the machine."""

import gc
import random
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.measure.latency import median_interval, paired_latency


class Clock:
    """Seconds that pass only when a contender works; `speed` is how slow the machine is at the moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.speed = 1.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def function() -> None:
            self.log.append(name)
            self.now += seconds * self.speed

        return function


def test_twice_the_work_takes_twice_the_time() -> None:
    clock = Clock()
    result = paired_latency(
        {"one": clock.work("one", 0.5), "two": clock.work("two", 1.0)}, clock=clock, min_round_time=0, rounds=8
    )
    assert result.reference == "one"
    assert result.medians == pytest.approx({"one": 0.5, "two": 1.0})
    ratio = result.ratios["two"]
    assert [ratio.median, ratio.low, ratio.high, ratio.q25, ratio.q75] == pytest.approx([2.0] * 5)
    assert result.ratios["one"].median == 1.0
    assert result.ratio("one", "two").median == pytest.approx(0.5)


def test_drift_between_rounds_cancels_in_the_ratio() -> None:
    clock = Clock()
    fast, slow = clock.work("fast", 1.0), clock.work("slow", 3.0)
    calls = 0

    def both(function: Callable[[], None]) -> Callable[[], None]:
        def drifting() -> None:
            nonlocal calls
            clock.speed = 1.0 + calls // 2  # changes from round to round, not within one
            calls += 1
            function()

        return drifting

    result = paired_latency(
        {"fast": both(fast), "slow": both(slow)}, clock=clock, min_round_time=0, rounds=20, warmup=0
    )
    assert max(result.seconds["fast"]) > 10 * min(result.seconds["fast"])
    ratio = result.ratio("slow")
    assert (ratio.low, ratio.high) == pytest.approx((3.0, 3.0))


def test_noise_shows_in_the_spread() -> None:
    clock = Clock()
    noise = random.Random(0)

    def noisy() -> None:
        clock.now += noise.uniform(1.0, 3.0)

    result = paired_latency({"steady": clock.work("steady", 1.0), "noisy": noisy}, clock=clock, rounds=60)
    ratio = result.ratio("noisy")
    assert 1.0 < ratio.q25 < ratio.median < ratio.q75 < 3.0
    assert ratio.low < ratio.median < ratio.high
    assert ratio.high - ratio.low < ratio.q75 - ratio.q25


def test_every_contender_is_timed_once_a_round_in_changing_order() -> None:
    clock = Clock()
    names = ["a", "b", "c"]

    def orders(seed: int) -> list[tuple[str, ...]]:
        clock.log.clear()
        paired_latency({name: clock.work(name, 1.0) for name in names}, clock=clock, rounds=12, warmup=2, seed=seed)
        assert clock.log[:6] == ["a", "a", "b", "b", "c", "c"]
        timed = clock.log[-36:]
        return [tuple(timed[i : i + 3]) for i in range(0, 36, 3)]

    first = orders(0)
    assert all(sorted(order) == names for order in first)
    assert len(set(first)) > 1
    assert orders(0) == first
    assert orders(1) != first


def test_short_functions_are_called_until_the_round_is_long_enough() -> None:
    clock = Clock()
    result = paired_latency(
        {"short": clock.work("short", 1e-4), "long": clock.work("long", 1.0)}, clock=clock, min_round_time=0.01
    )
    assert result.calls == {"short": 128, "long": 1}
    assert result.medians == pytest.approx({"short": 1e-4, "long": 1.0})
    assert all(len(times) == 30 for times in result.seconds.values())


def test_synchronize_stands_before_each_reading_of_the_clock() -> None:
    clock = Clock()
    queued: list[float] = []

    def wait() -> None:
        clock.now += sum(queued)
        queued.clear()

    result = paired_latency({"queue": lambda: queued.append(2.0)}, clock=clock, synchronize=wait, rounds=6)
    assert result.medians["queue"] == pytest.approx(2.0)


def test_the_real_clock_and_the_collector() -> None:
    seen = []

    def busy() -> None:
        seen.append(gc.isenabled())
        torch.ones(64, 64) @ torch.ones(64, 64)

    result = paired_latency({"busy": busy}, rounds=6, min_round_time=1e-4)
    assert all(seconds > 0 for seconds in result.seconds["busy"])
    assert not any(seen)
    assert gc.isenabled()


def test_the_global_random_state_is_left_alone() -> None:
    clock = Clock()
    python, torch_state = random.getstate(), torch.get_rng_state()
    paired_latency({"a": clock.work("a", 1.0), "b": clock.work("b", 1.0)}, clock=clock)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_an_error_of_a_contender_comes_through() -> None:
    def fails() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        paired_latency({"fails": fails})
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rounds": 5}, ValueError, "rounds: got 5"),
        ({"warmup": -1}, ValueError, "warmup: got -1"),
        ({"min_round_time": -0.1}, ValueError, "min_round_time: got -0.1"),
        ({"min_round_time": float("nan")}, ValueError, "min_round_time: got nan"),
        ({"reference": "c"}, ValueError, "reference: got 'c', want one of a, b"),
        ({"contenders": {}}, ValueError, "contenders: got none"),
        ({"contenders": {"a": 3}}, TypeError, "got int"),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], message: str) -> None:
    contenders = settings.pop("contenders", {"a": lambda: None, "b": lambda: None})
    with pytest.raises(error, match=message):
        paired_latency(contenders, **settings)


def test_a_clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperworks.measure.latency._MAX_CALLS", 64)
    with pytest.raises(RuntimeError, match=r"'a'.*64 calls took 0.0 s"):
        paired_latency({"a": lambda: None}, clock=lambda: 1.0)


def test_an_unknown_name_is_refused() -> None:
    clock = Clock()
    result = paired_latency({"a": clock.work("a", 1.0)}, clock=clock)
    with pytest.raises(ValueError, match="got 'z', want one of the contenders: a"):
        result.ratio("z")


# --- the interval ---


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (9, 2, 8), (10, 2, 9), (30, 10, 21), (100, 40, 61)])
def test_median_interval_takes_the_tabulated_ranks(n: int, low: int, high: int) -> None:
    values = [float(i) for i in range(1, n + 1)]
    assert median_interval(values) == (low, high)


def test_median_interval_needs_six_values() -> None:
    with pytest.raises(ValueError, match="got 5"):
        median_interval([1.0] * 5)


def test_median_interval_covers_as_often_as_it_says() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([draw.expovariate(1.0) for _ in range(20)])
        hits += low <= 0.6931471805599453 <= high
    assert hits / 2000 == pytest.approx(0.9586, abs=4 * (0.9586 * 0.0414 / 2000) ** 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=60))
def test_median_interval_holds_the_sample_median(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high
