"""The tiers: how much work a run does."""

from __future__ import annotations

from typing import Any

TIERS = ("smoke", "desk", "gpu", "full")


def check_tier(tier: str) -> str:
    """Return `tier`, or raise ValueError naming the known ones."""
    if tier not in TIERS:
        raise ValueError(f"tier: got {tier!r}, wanted one of {', '.join(TIERS)}")
    return tier


class Tiers:
    """A value by tier: ``Tiers(smoke=1, desk=20)``. A tier without a value takes the next lower one."""

    def __init__(self, **values: Any) -> None:
        unknown = set(values) - set(TIERS)
        if unknown or not values:
            raise ValueError(f"Tiers: got {sorted(values)}, wanted some of {', '.join(TIERS)}")
        self.values = values

    def __repr__(self) -> str:
        return f"Tiers({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"

    def at(self, tier: str) -> Any:
        """The value at `tier`."""
        position = TIERS.index(check_tier(tier))
        for name in reversed(TIERS[: position + 1]):
            if name in self.values:
                return self.values[name]
        return next(iter(self.values.values()))


def at_tier(value: Any, tier: str) -> Any:
    """`value` itself, or its value at `tier` where it is a `Tiers`."""
    return value.at(tier) if isinstance(value, Tiers) else value
