"""How numbers, criteria and reasons are put into words, the same on the page, in Markdown and in the README.

The functions take what `paperworks.lab.report.jsonform` makes: plain data in which a number that is not finite is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, BestOf, Contender, Criterion, at_tier

Said = Mapping[str, Any]

INTERVALS = {"t": "Student's t", "BCa": "BCa bootstrap", "point": "all values equal"}
SYMBOLS = {"holds": "✓", "inconclusive": "~", "fails": "✗", "not run": "○", "error": "!"}
KINDS = {
    "exact": "an identity or a count, observed against expected",
    "measured": "a comparison over paired seeds",
    "needs": "measured once what it needs is there",
}
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
"""Code within the text of a card."""
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

HOW_VERDICTS_ARE_MADE = (
    "A claim is one sentence of a paper together with what decides it, written down before anything is run.",
    "An exact claim is a count or an identity: every observed number has to meet its bound to the stated tolerance.",
    "A measured claim compares arms of one protocol over seeds. Both arms of a pair get the same data and the same "
    "random numbers, so what is judged is the paired difference (or ratio), never a single run.",
    "It holds when the mean lies on the claimed side of the margin with its whole confidence interval, fails when it "
    "lies so on the other side, and is inconclusive otherwise. Of several criteria all have to hold; one fails it.",
    f"The 95 % interval is Student's t for {MINIMUM_SEEDS} or more near-normal values (Shapiro-Wilk p > 0.05). "
    "Otherwise it is the bias-corrected and accelerated bootstrap (BCa), and the sign-flip test has to agree.",
    f"Fewer than {MINIMUM_SEEDS} seeds decide nothing. The number of seeds is declared and run; nothing stops early.",
    "Holm's step-down correction over the measured claims of a paper sets the level at which each is decided; the "
    "interval at that level is given beside the 95 % interval.",
    "The effect size d is the distance of the mean from the margin in standard deviations of the paired values.",
    "A claim that needs a data set, a checkpoint or a GPU is not run until it is given. A trial that raised, hung or "
    "was killed ends in an error, never in a verdict.",
    "Every verdict is computed from the trials it names; none is typed in. With the method replaced by its baseline "
    "the same criterion has to lose its verdict.",
)


def value_of(value: Any) -> float | None:
    """The number in `value`, which JSON may hold as text; None where there is none or it is not finite."""
    if value is None:
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def _minus(text: str) -> str:
    return text.replace("-", "−")


def exact_number(value: Any) -> str:
    """A count or an identity's number: whole numbers in full with thousands separated, others to seven digits."""
    if value is None:
        return "–"
    found = float(value)
    if not math.isfinite(found):
        return _minus(str(found))
    return _minus(f"{found:,.0f}" if found.is_integer() and abs(found) < 1e15 else f"{found:,.7g}")


def bound_words(text: str) -> str:
    """A bound with the signs that print has: ``≤``, ``≥``, ``±`` and a true minus."""
    return _minus(text.replace("+-", "±").replace("<=", "≤").replace(">=", "≥"))


def with_digits(value: Any, width: float, *, sign: bool = False) -> str:
    """`value` to two significant digits of `width`, the half-width of its interval (four digits of it if that is 0)."""
    found = value_of(value)
    if found is None:
        return "–" if value is None else _minus(str(float(value)))
    if found == 0:
        return "0"
    scale = abs(width) if width else abs(found) / 100
    decimals = 0 if scale == 0 else max(0, 1 - math.floor(math.log10(scale)))
    if decimals > 6 or abs(found) >= 1e9:
        text = f"{found:{'+' if sign else ''}.3g}"
    else:
        text = f"{found:{'+' if sign else ''},.{decimals}f}"
    return _minus(text)


def p_number(p: Any) -> str:
    """A p-value to two digits, and no smaller than 0.0001."""
    found = value_of(p)
    if found is None:
        return "–"
    return "<\N{NO-BREAK SPACE}0.0001" if found < 1e-4 else f"{found:.2g}" if found < 0.995 else "1"


def duration(seconds: float) -> str:
    """Seconds as people say them: ``0.4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


def day(iso: str) -> str:
    """The day of an ISO date or time: ``25 November 2025``."""
    found = date.fromisoformat(iso[:10])
    return f"{found.day} {MONTHS[found.month - 1]} {found.year}"


def plural(count: int, word: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def comparison_words(comparison: Said) -> dict[str, str]:
    """The numbers of a criterion as text, all with the digits that the width of the interval leaves meaningful."""
    low, high = value_of(comparison["low"]), value_of(comparison["high"])
    width = (high - low) / 2 if low is not None and high is not None else 0.0
    margin = value_of(comparison["margin"])
    sign = bool(comparison["baseline"]) and comparison["scale"] == "difference"

    def said(name: str) -> str:
        return with_digits(comparison[name], width, sign=sign)

    def mean(values: Mapping[str, Any]) -> str:
        finite = [v for v in map(value_of, values.values()) if v is not None]
        # The width of a ratio's interval says nothing of the arms' own digits.
        digits = 0.0 if comparison["scale"] == "ratio" else width
        return with_digits(sum(finite) / len(finite) if finite else None, digits)

    n = len(comparison["paired"])
    kind = "ratio" if comparison["scale"] == "ratio" else "difference" if comparison["baseline"] else "value"
    words: dict[str, str] = {
        "kind": kind,
        "estimate": said("observed"),
        "interval": _range(said("low"), said("high")),
        "interval_kind": INTERVALS.get(comparison["interval"], str(comparison["interval"])) if n > 1 else "one value",
        "p": p_number(comparison["p"]),
        "effect": _effect(comparison["effect"]) if n > 1 else "–",
        "method_mean": mean(comparison["method_values"]),
        "baseline_mean": mean(comparison["baseline_values"]),
        "margin": "–" if margin is None else _minus(f"{margin:g}"),
        "n": str(n),
    }
    level, adjusted = value_of(comparison["level"]), value_of(comparison["adjusted_low"])
    words["level"] = "–" if level is None else f"{level:.3g}"
    words["adjusted"] = "–" if adjusted is None else _range(said("adjusted_low"), said("adjusted_high"))
    return words


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _effect(effect: Any) -> str:
    if effect is None:
        return "–"
    if float(effect) == 0:
        return "0"
    # Values that differ by rounding alone have no spread to measure in.
    found = float(effect) if abs(float(effect)) < 1e6 else math.copysign(math.inf, float(effect))
    return _minus(f"{found:+.2f}").replace("inf", "∞")


def _contender_words(contender: Contender) -> str:
    if isinstance(contender, BestOf):
        names = ", ".join(arm.name for arm in contender.arms)
        seeds = plural(contender.selection_seeds, "seed")
        return f"{contender.name} is the best of {names}, chosen on {seeds} of its own"
    return ""


def criterion_words(criterion: Criterion, tier: str) -> str:
    """What a criterion demands, as a sentence."""
    side = "above" if criterion.direction == "greater" else "below"
    seeds = at_tier(criterion.seeds, tier)
    if criterion.baseline is None:
        subject, over = f"{criterion.metric} of {criterion.method.name}", f"over {plural(seeds, 'seed')}"
    else:
        operator = "/" if criterion.scale == "ratio" else "minus"
        subject = f"{criterion.metric}, {criterion.method.name} {operator} {criterion.baseline.name}"
        over = f"over {plural(seeds, 'paired seed')}"
    sentence = f"{subject}, {over}: the whole interval {side} {_minus(f'{criterion.margin:g}')}"
    chosen = [_contender_words(c) for c in (criterion.method, criterion.baseline) if c is not None]
    return "; ".join([sentence, *filter(None, chosen)]) + "."


def headline(text: str) -> str:
    """The line of an error that says what happened: of a traceback the last that is not indented, else the first."""
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return ""
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        # A remark in brackets below a traceback is not its message.
        said = [line for line in lines if not line[0].isspace() and not line.startswith(("Traceback (", "("))]
        found = said[-1] if said else lines[-1]
    else:
        found = lines[0]
    found = found.strip()
    return found if len(found) <= 300 else f"{found[:299]}…"


def excerpt(text: str, first: int = 4, last: int = 8) -> dict[str, Any]:
    """The first and the last lines of a text and the number of those left out between; long lines are cut."""
    lines = [line if len(line) <= 400 else f"{line[:399]}…" for line in text.strip("\n").splitlines()]
    if len(lines) <= first + last + 1:
        return {"first": lines, "omitted": 0, "last": []}
    return {"first": lines[:first], "omitted": len(lines) - first - last, "last": lines[-last:]}


def why_undecided(comparison: Said) -> str:
    """Why one criterion is inconclusive."""
    if comparison["reason"]:
        return str(comparison["reason"])
    n = len(comparison["paired"])
    if n < MINIMUM_SEEDS:
        return f"{plural(n, 'seed')}; fewer than {MINIMUM_SEEDS} decide nothing"
    words = comparison_words(comparison)
    if value_of(comparison["level"]):
        return f"p = {words['p']} is above {words['level']}, the level that Holm's correction leaves"
    return f"p = {words['p']}, and Holm's correction had stopped at a criterion with a smaller p"


def short_numbers(verdict: Said) -> str:
    """The numbers of a verdict in one line, for tables."""
    said = []
    exact = [c for c in verdict["comparisons"] if not c["direction"]]
    for comparison in verdict["comparisons"]:
        if not comparison["direction"] or comparison["observed"] is None:
            continue
        words = comparison_words(comparison)
        numbers = f"{words['estimate']} [{words['interval'].replace(' to ', ', ')}], n = {words['n']}"
        said.append(f"{comparison['label']}: {numbers}" if comparison["label"] else numbers)
    if len(exact) == 1 and exact[0]["observed"] is not None:
        said.append(f"{exact_number(exact[0]['observed'])} ({bound_words(exact[0]['expected'])})")
    elif exact:
        met = sum(c["side"] == "holds" for c in exact)
        said.append(f"{met} of {plural(len(exact), 'number')} as expected")
    return "; ".join(said)
