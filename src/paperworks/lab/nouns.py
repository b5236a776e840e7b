"""The nouns of the lab: what a paper, a claim, a protocol and an arm are.

Everything here is a plain frozen description: no tensor library is imported, so a catalogue of many papers is listed
in an instant. What has to be computed is named by an import path (``package.module:attribute``) and resolved in the
worker process that computes it.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from paperworks.lab.tiers import Tiers as Tiers
from paperworks.lab.tiers import at_tier as at_tier
from paperworks.lab.tiers import check_tier as check_tier

Direction = Literal["greater", "less"]

MINIMUM_SEEDS = 8
"""Fewer paired seeds than this never decide a measured claim: see `paperworks.lab.statistics`."""


def resolve(target: str) -> Any:
    """Import ``package.module:attribute`` and return the attribute.

    Raises ValueError for a malformed target, ImportError or AttributeError where it does not exist.
    """
    module, colon, attribute = target.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"target: got {target!r}, wanted 'package.module:attribute'")
    found: Any = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


@dataclass(frozen=True)
class Arm:
    """A named thing under test: the method, the paper's baseline, an ablation, another paper's method.

    Args:
        name: what tables and figures call it.
        target: import path of a callable, ``package.module:attribute``.
        options: keyword arguments of the callable.
    """

    name: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Call the target with the arm's options; keyword arguments given here come first in precedence."""
        return resolve(self.target)(*args, **{**self.options, **kwargs})

    @staticmethod
    def parse(text: str) -> Arm:
        """The arm that ``package.module:attribute`` or ``package.module:attribute(name=literal, ...)`` names."""
        target, parenthesis, rest = text.partition("(")
        options = {}
        if parenthesis:
            try:
                call = ast.parse(f"f({rest}", mode="eval").body
                assert isinstance(call, ast.Call)
                assert not call.args
                options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
            except (SyntaxError, ValueError, AssertionError):
                wanted = "'package.module:attribute(name=literal, ...)'"
                raise ValueError(f"arm: got {text!r}, wanted 'package.module:attribute' or {wanted}") from None
        return Arm(text, target, options)

    @property
    def key(self) -> str:
        """Identity of the arm: target and options. The name is only a label."""
        return f"{self.target}({json.dumps(dict(self.options), sort_keys=True)})"


@dataclass(frozen=True)
class BestOf:
    """The arm with the best mean of the criterion's metric on seeds of their own, never the seeds of the comparison."""

    name: str
    arms: tuple[Arm, ...]
    selection_seeds: int = 2


Contender = Arm | BestOf


@dataclass(frozen=True)
class Setting:
    """A typed setting of a protocol, overridden by ``--set name=value``.

    Args:
        name: as given on the command line.
        kind: `str`, `int`, `float` or `bool`.
        default: a value or a `Tiers`.
        help: one line, with the forms that are understood.
        check: returns nothing or raises ValueError with what was wanted.
        signature: import path of a function of the value that returns a digest of what the value names (the files of
            a data set, the source of a model factory): a trial is not reused when that has changed.
    """

    name: str
    kind: type
    default: Any
    help: str
    check: Callable[[Any], object] | None = None
    signature: str = ""


@dataclass(frozen=True)
class Protocol:
    """A task with its measurements: a function ``(trial, arm) -> {metric: number}``.

    `exclusive` protocols measure time: they run with nothing beside them, and what one machine measured is never
    reused for another. `preload` names modules that are slow to import: workers are forked from a process that has
    them. They are installed with what the protocol needs; a missing one is passed over.
    """

    name: str
    target: str
    metrics: Mapping[str, str]
    settings: tuple[Setting, ...] = ()
    exclusive: bool = False
    time_limit: float = 900.0
    memory_limit_gib: float = 8.0
    preload: tuple[str, ...] = ()
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def setting(self, name: str) -> Setting | None:
        """The setting of that name, or None."""
        return next((s for s in self.settings if s.name == name), None)


def protocol(
    name: str, *, metrics: Mapping[str, str], settings: tuple[Setting, ...] = (), **options: Any
) -> Callable[[Callable[..., Any]], Protocol]:
    """Turn the decorated function ``(trial, arm) -> {metric: number}`` into a `Protocol`."""

    def decorate(function: Callable[..., Any]) -> Protocol:
        target = f"{function.__module__}:{function.__name__}"
        return Protocol(name, target, metrics, settings, function=function, **options)

    return decorate


@dataclass(frozen=True)
class Need:
    """Something a claim cannot be measured without.

    Kinds: `setting` (the user names it by ``--set name=...``; `pattern` is a regular expression that the value has to
    match), `package` (an importable package), `gpu` (a CUDA device).
    """

    kind: Literal["setting", "package", "gpu"]
    name: str
    what: str
    pattern: str = ".+"

    def missing(self, settings: Mapping[str, Any]) -> str | None:
        """None when the need is met, else one line that says what to give."""
        if self.kind == "setting":
            if re.fullmatch(self.pattern, str(settings.get(self.name, ""))):
                return None
            return f"{self.what} (--set {self.name}=...)"
        if self.kind == "package":
            from importlib.util import find_spec

            return None if find_spec(self.name) else f"the package {self.name} ({self.what})"
        import torch

        return None if torch.cuda.is_available() else f"a CUDA device ({self.what})"


@dataclass(frozen=True)
class Bound:
    """What an exact claim demands of an observed number: equal, at most or at least, to a stated tolerance."""

    equals: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    tolerance: float = 0.0

    def met(self, observed: float) -> bool:
        """Whether `observed` meets the bound. NaN never does."""
        checks = []
        if self.equals is not None:
            checks.append(abs(observed - self.equals) <= self.tolerance)
        if self.at_most is not None:
            checks.append(observed <= self.at_most + self.tolerance)
        if self.at_least is not None:
            checks.append(observed >= self.at_least - self.tolerance)
        return bool(checks) and all(checks)

    def __str__(self) -> str:
        parts = []
        if self.equals is not None:
            parts.append(f"= {self.equals:,.10g}")
        if self.at_least is not None:
            parts.append(f">= {self.at_least:,.10g}")
        if self.at_most is not None:
            parts.append(f"<= {self.at_most:,.10g}")
        return " and ".join(parts) + (f" (+- {self.tolerance:g})" if self.tolerance else "")


@dataclass(frozen=True)
class Criterion:
    """What decides a measured claim, written down before it is run.

    The paired difference ``method - baseline`` of `metric` over seeds (with ``scale="ratio"`` the ratio, compared on
    the log scale; without a baseline the method's own value) has to lie on the `direction` side of `margin` with its
    whole confidence interval.

    Args:
        metric: name of a metric of the protocol.
        method: the arm of the paper.
        direction: ``"greater"`` or ``"less"``.
        baseline: the arm it is paired with, or None: the metric is compared with `margin` itself.
        margin: difference, ratio or value that separates the two sides.
        scale: ``"difference"`` or ``"ratio"``.
        seeds: number of paired seeds, a number or a `Tiers`.
        control: arm put in the method's place by ``--control``, which must lose the verdict; the baseline if None.
    """

    metric: str
    method: Contender
    direction: Direction
    baseline: Contender | None = None
    margin: float = 0.0
    scale: Literal["difference", "ratio"] = "difference"
    seeds: Any = field(default_factory=lambda: Tiers(smoke=2, desk=10))
    control: Arm | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("greater", "less"):
            raise ValueError(f"direction: got {self.direction!r}, wanted 'greater' or 'less'")
        if self.scale == "ratio" and (self.baseline is None or self.margin <= 0):
            raise ValueError(f"scale='ratio' wants a baseline and a margin > 0, got margin={self.margin!r}")
        if self.baseline is None and self.control is None:
            raise ValueError(f"criterion on {self.metric!r}: wanted a baseline or a control arm, got neither")

    def __str__(self) -> str:
        sign = ">" if self.direction == "greater" else "<"
        if self.baseline is None:
            return f"{self.metric} of {self.method.name} {sign} {self.margin:g}"
        if self.scale == "ratio":
            return f"{self.metric}: {self.method.name} / {self.baseline.name} {sign} {self.margin:g}"
        return f"{self.metric}: {self.method.name} - {self.baseline.name} {sign} {self.margin:g}"


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper and what decides it."""

    id: str
    sentence: str
    kind: Literal["exact", "measured", "needs"]
    source: str
    published: str = ""
    note: str = ""
    needs: tuple[Need, ...] = ()
    # exact
    target: str = ""
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    # measured
    protocol: Protocol | None = None
    criteria: tuple[Criterion, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What implementing the paper showed that the paper does not say, with the claims that show it."""

    sentence: str
    shown_by: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A figure drawn from the trials of a paper's verdicts: `draw(figure, results)` fills a matplotlib figure."""

    target: str
    caption: str
    size: tuple[float, float] = (7.2, 3.2)


@dataclass
class Paper:
    """A card: facts, a summary in our own words, the method's module, claims, findings and where each part comes from.

    `provenance` maps a part of the method to its origin: the paper, its code, or our reconstruction. A paper that is
    announced, and not carried yet, has facts and a summary, and neither method nor claims.
    """

    id: str
    title: str
    area: str
    arxiv: str
    date: date
    authors: str
    n_authors: int
    summary: str
    method: str
    usage: str
    code: str = ""
    venue: str = ""
    keywords: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Address of the abstract page; empty for a paper that is not on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def carried(self) -> bool:
        """Whether its method is here."""
        return bool(self.method)

    def claim(self, id: str) -> Claim:
        """The claim of that id; ValueError lists what exists."""
        for claim in self.claims:
            if claim.id == id:
                return claim
        raise ValueError(f"claim: got {id!r}, {self.id} has {', '.join(c.id for c in self.claims)}")

    def add(self, claim: Claim) -> Claim:
        """Append a claim; ids are unique within a paper."""
        if any(c.id == claim.id for c in self.claims):
            raise ValueError(f"claim {claim.id!r} of {self.id} is declared twice")
        self.claims.append(claim)
        return claim

    def exact(
        self,
        sentence: str,
        *,
        source: str,
        expect: Bound | Mapping[str, Bound],
        published: str = "",
        note: str = "",
        needs: tuple[Need, ...] = (),
        id: str = "",
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare the decorated ``(trial) -> number | {label: number}`` as an exact claim with what is expected."""
        bounds = {"": expect} if isinstance(expect, Bound) else dict(expect)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            target = f"{function.__module__}:{function.__name__}"
            name = id or function.__name__.replace("_", "-")
            self.add(Claim(name, sentence, "exact", source, published, note, needs, target=target, bounds=bounds))
            return function

        return decorate

    def measured(
        self,
        id: str,
        sentence: str,
        *,
        source: str,
        protocol: Protocol,
        criteria: Criterion | tuple[Criterion, ...],
        settings: Mapping[str, Any] | None = None,
        needs: tuple[Need, ...] = (),
        published: str = "",
        note: str = "",
    ) -> Claim:
        """Declare a measured claim; one with a `setting` or `gpu` need is a needs-claim."""
        criteria = criteria if isinstance(criteria, tuple) else (criteria,)
        for criterion in criteria:
            if criterion.metric not in protocol.metrics:
                known = ", ".join(protocol.metrics)
                raise ValueError(f"metric: got {criterion.metric!r}, protocol {protocol.name!r} has {known}")
        for name in settings or {}:
            if protocol.setting(name) is None:
                known = ", ".join(s.name for s in protocol.settings)
                raise ValueError(f"settings: got {name!r}, protocol {protocol.name!r} has {known}")
        kind: Literal["measured", "needs"] = "needs" if any(n.kind != "package" for n in needs) else "measured"
        return self.add(
            Claim(
                id, sentence, kind, source, published, note, needs,
                protocol=protocol, criteria=criteria, settings=dict(settings or {}),
            )
        )  # fmt: skip
