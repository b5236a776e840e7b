"""A paper's own figures, drawn from the trials behind its verdicts, as SVG that lies inside a page.

The SVG keeps text as text and takes its colours from the page: what matplotlib draws in one of the colours of `SERIES`,
in `INK` or in `FAINT` refers to the variable of that colour in the page's style sheet, which knows light and dark. Any
other colour has on a dark page no less contrast than on a light one.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree

from paperworks.lab.nouns import Arm, BestOf, Claim, Figure, Paper, resolve
from paperworks.lab.records import Comparison, TrialResult, TrialSpec, Verdict
from paperworks.lab.report.collect import Report
from paperworks.lab.report.colours import on_dark

SERIES = ("#2462c4", "#b9500b", "#0a7868", "#a12f86", "#7d6300", "#5a4bd0", "#a92c40", "#5d6874")
INK, FAINT, SURFACE = "#1b2028", "#d5dbe2", "#ffffff"
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

# What the page's style sheet names each colour. Black and white are what people write for ink and paper.
VARIABLES = {
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
    INK: "--ink",
    "#000000": "--ink",
    FAINT: "--rule",
    SURFACE: "--surface",
}

# rcParams are one for the whole process: figures are drawn one at a time.
_drawing = threading.Lock()


class MissingResults(LookupError):
    """A figure asked for results that are not there."""


@dataclass(frozen=True)
class Results:
    """The results of one paper's claims, as its figures want them. What is not there raises `MissingResults`.

    An arm goes by the name it has on the card; the best of several also by the name of the choice. Results of an arm
    are those of the seeds that the claim's verdict compares.
    """

    paper: Paper
    report: Report

    def values(self, claim_id: str) -> list[Comparison]:
        """The comparisons of a claim's verdict, one a criterion or bound."""
        self.paper.claim(claim_id)
        verdict = self.report.verdicts.get((self.paper.id, claim_id))
        if verdict is None or not verdict.comparisons:
            raise MissingResults(f"the claim {claim_id} has no numbers yet")
        return list(verdict.comparisons)

    def curves(self, claim_id: str, arm_name: str, curve: str) -> list[tuple[int, list[float]]]:
        """The recorded curve of every trial of an arm: ``[(seed, numbers)]`` in the order of the seeds."""
        trials = self._trials(claim_id, arm_name)
        found = [(spec.seed, list(result.curves[curve])) for spec, result in trials if curve in result.curves]
        if not found:
            raise MissingResults(f"the claim {claim_id} has no curve {curve!r} of {arm_name}")
        return found

    def metric(self, claim_id: str, arm_name: str, metric: str) -> dict[int, float]:
        """A metric of an arm by seed."""
        trials = self._trials(claim_id, arm_name)
        found = {spec.seed: float(result.metrics[metric]) for spec, result in trials if metric in result.metrics}
        if not found:
            raise MissingResults(f"the claim {claim_id} has no metric {metric!r} of {arm_name}")
        return found

    def _trials(self, claim_id: str, arm_name: str) -> list[tuple[TrialSpec, TrialResult]]:
        claim = self.paper.claim(claim_id)
        verdict = self.report.verdicts.get((self.paper.id, claim_id))
        if verdict is None:
            raise MissingResults(f"the claim {claim_id} has not been run")
        keys = {arm.key for arm in _arms(claim, verdict, arm_name)}
        trials = [self.report.trials[key] for key in verdict.trials if key in self.report.trials]
        done = [(spec, result) for spec, result in trials if _spec_key(spec) in keys and result.status == "done"]
        if not done:
            raise MissingResults(f"the claim {claim_id} has no finished trial of {arm_name}")
        seeds = {seed for c in verdict.comparisons for seed in (*c.method_values, *c.baseline_values)}
        compared = [(spec, result) for spec, result in done if str(spec.seed) in seeds]
        return sorted(compared or done, key=lambda pair: pair[0].seed)


def _arms(claim: Claim, verdict: Verdict, name: str) -> Iterator[Arm]:
    """The arms of a claim that go by `name`. The name of a choice, as in "fixed", stands for the arm that was chosen,
    which the verdict's comparisons call "fixed (z = 0.52)"."""
    compared = {side for comparison in verdict.comparisons for side in (comparison.method, comparison.baseline)}
    for criterion in claim.criteria:
        for contender in (criterion.method, criterion.baseline, criterion.control):
            if isinstance(contender, BestOf):
                for arm in contender.arms:
                    full = f"{contender.name} ({arm.name})"
                    if name in (arm.name, full) or (name == contender.name and full in compared):
                        yield arm
            elif contender is not None and contender.name == name:
                yield contender


def _spec_key(spec: TrialSpec) -> str:
    return Arm(spec.label, spec.arm_target, spec.arm_options).key


@dataclass(frozen=True)
class Drawn:
    """A figure of a page: its SVG, or in words why there is none."""

    caption: str
    svg: str = ""
    missing: str = ""


def draw(figure: Figure, results: Results, prefix: str) -> Drawn:
    """Draw a paper's figure. A function that raises, or whose results are missing, costs the figure, not the page.

    Args:
        prefix: put before the ids inside the SVG, so that several lie on one page.
    """
    from matplotlib.figure import Figure as Canvas

    try:
        with _style():
            canvas = Canvas(figsize=figure.size, layout="constrained")
            resolve(figure.target)(canvas, results)
            written = io.StringIO()
            canvas.savefig(written, format="svg", transparent=True)
        return Drawn(figure.caption, svg=for_page(written.getvalue(), prefix, figure.caption))
    except MissingResults as error:
        return Drawn(figure.caption, missing=f"Not drawn yet: {error}. Run: paperworks run {results.paper.id}")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return Drawn(figure.caption, missing=f"Not drawn: {figure.target} raised {said[:300]}")


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl
    from cycler import cycler

    parameters = {
        "svg.fonttype": "none",
        "svg.hashsalt": "paperworks",
        "font.family": "sans-serif",
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.prop_cycle": cycler(color=SERIES),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "hatch.color"), INK),
        **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "none"),
    }
    with _drawing, mpl.rc_context(parameters), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def for_page(svg: str, prefix: str, title: str) -> str:
    """A matplotlib SVG made fit to lie inside a page.

    No prolog, metadata or style element (which would reach the whole page), ids of its own, the page's font and
    colours, a title for those who do not see it.
    """
    root = ElementTree.fromstring(svg.encode())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            element.set(name, _attribute(name, value, prefix))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    # What the removed style element said, which the shapes inherit.
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return _serialised(root)


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == f"{{{XLINK}}}href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    if name == "style":
        # Matplotlib's default family, written as font-family or, before 3.11, as the end of the font shorthand.
        value = re.sub(
            r"(font-family:|font:[^;]*?[\d.]+px) ['\"]?DejaVu Sans['\"]?(?=[,;]|$)[^;]*",
            r"\1 var(--sans, sans-serif)",
            value,
        )
        value = re.sub(r"#[0-9a-fA-F]{6}\b", lambda colour: _variable(colour.group()), value)
    return value


def _variable(colour: str) -> str:
    name = VARIABLES.get(colour.lower())
    return f"var({name}, {colour})" if name else f"light-dark({colour}, {on_dark(colour)})"


def _serialised(root: ElementTree.Element) -> str:
    """The tree as HTML has it: names without namespaces, links as plain ``href``."""
    for element in root.iter():
        element.tag = _bare(element.tag)
        attributes = {_bare(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def draw_all(report: Report) -> dict[str, list[Drawn]]:
    """The figures of every paper of `report` by paper id."""
    return {
        paper.id: [
            draw(figure, Results(paper, report), f"{paper.id}-figure-{number}")
            for number, figure in enumerate(paper.figures, 1)
        ]
        for paper in report.papers
    }
