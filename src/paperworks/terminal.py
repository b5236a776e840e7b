"""What the commands print: progress, tables of papers, claims, verdicts, arenas and benchmarks."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from paperworks.lab.nouns import Claim, Paper
from paperworks.lab.records import STATUSES, Comparison, TrialResult, TrialSpec, Verdict

if TYPE_CHECKING:
    from paperworks.lab.arena import Arena, Row
    from paperworks.lab.benchmark import CaseResult

STYLES = {"holds": "green", "fails": "red", "inconclusive": "yellow", "not run": "dim", "error": "bold red"}
SHOWN_ERRORS = 3
MARKS = {"holds": "+", "fails": "-", "inconclusive": "~", "not run": ".", "error": "!"}


def wide_console() -> Console:
    """A console as wide as the terminal; where there is none, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=max(120, console.width))


def status_text(status: str) -> str:
    """A status with its mark and colour."""
    return f"[{STYLES[status]}]{MARKS[status]} {status}[/]"


def short(value: float | None) -> str:
    """A number in at most about eight characters."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def numbers(comparison: Comparison) -> str:
    """The numbers of a comparison in one line."""
    if comparison.expected:
        return f"{short(comparison.observed)} (wanted {comparison.expected})"
    interval = f"[{short(comparison.low)}, {short(comparison.high)}]"
    return f"{short(comparison.observed)} {interval} {comparison.interval}, p = {comparison.p:.2g}"


class Display:
    """Progress of a run on the terminal: a bar over all trials, the running trials, verdicts as they are there."""

    def __init__(self, quiet: bool = False, control: bool = False) -> None:
        from paperworks.lab.runner import Watcher

        # With JSON on standard output the progress goes to standard error.
        self.console = Console(stderr=True) if quiet else wide_console()
        self.quiet = quiet
        self.control = control
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.running: dict[str, str] = {}
        self.errors = self.total = self.done = 0
        self.watcher = Watcher(self._planned, self._progress, self._finished, self._verdict)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if kind is KeyboardInterrupt:
            Console(stderr=True).print("interrupted: what finished is kept; run the same command again to go on")
            raise typer.Exit(130)

    def _planned(self, total: int, reused: int) -> None:
        self.total, self.done = self.total + total, self.done + reused
        if self.task is None:
            self.task = self.progress.add_task("trials", total=self.total, completed=self.done, note="")
        self.progress.update(self.task, total=self.total, completed=self.done)
        self.console.print(f"{total} trials, {reused} of them in the store already")

    def _note(self) -> None:
        if self.task is not None:
            self.progress.update(self.task, note=escape(" | ".join(self.running.values()))[:90])

    def _progress(self, spec: TrialSpec, fraction: float, text: str) -> None:
        self.running[spec.key] = f"{spec.label} seed {spec.seed} {fraction:.0%}"
        self._note()

    def _finished(self, spec: TrialSpec, result: TrialResult) -> None:
        self.running.pop(spec.key, None)
        if self.task is not None:
            self.done += 1
            self.progress.update(self.task, completed=self.done)
        self._note()
        self.errors += result.status == "error"
        if result.status == "error" and not self.quiet and self.errors <= SHOWN_ERRORS:
            last = result.error.strip().splitlines()[-1] if result.error.strip() else ""
            self.console.print(f"[red]error[/] in {escape(spec.label)} seed {spec.seed}: {escape(last)[:150]}")

    def _verdict(self, paper: Paper, claim: Claim, verdict: Verdict) -> None:
        if not self.quiet:
            where = "control " if self.control else ""
            self.console.print(f"{status_text(verdict.status):<28} {where}{paper.id}: {escape(claim.sentence)}")


def print_papers(papers: Sequence[Paper]) -> None:
    """The list of papers."""
    table = Table(box=None, pad_edge=False)
    for column in ("id", "area", "arXiv", "claims", "title"):
        table.add_column(column, justify="right" if column == "claims" else "left", no_wrap=column != "title")
    for paper in papers:
        table.add_row(paper.id, paper.area, paper.arxiv, str(len(paper.claims)), escape(paper.title))
    wide_console().print(table)


def criteria_text(claim: Claim) -> list[str]:
    """What decides a claim, in words, one line a criterion or bound."""
    if claim.protocol is None:
        return [f"{label or 'observed'} {bound}" for label, bound in claim.bounds.items()]
    return [str(criterion) for criterion in claim.criteria]


def print_card(paper: Paper, verdicts: Sequence[Verdict]) -> None:
    """A paper's card with the verdicts the store has."""
    console = wide_console()
    console.print(f"[bold]{escape(paper.title)}[/]")
    number = f"arXiv {paper.arxiv}" if paper.arxiv else ""
    facts = [number, paper.date.isoformat(), paper.authors, paper.venue, paper.code]
    console.print(escape(" · ".join(fact for fact in facts if fact)), style="dim")
    console.print(escape(textwrap.fill(paper.summary, min(100, console.width))), "\n", sep="")
    for claim in paper.claims:
        mine = [v for v in verdicts if v.claim == claim.id]
        console.print(f"[bold]{claim.id}[/] ({claim.kind}, {escape(claim.source)}): {escape(claim.sentence)}")
        if claim.published:
            console.print(f"  published: {escape(claim.published)}")
        for line in criteria_text(claim):
            console.print(f"  criterion: {escape(line)}")
        for need in claim.needs:
            console.print(f"  needs: {escape(need.what)}")
        for verdict in mine:
            given = ", ".join(f"{k}={v}" for k, v in verdict.settings.items())
            console.print(
                f"  {status_text(verdict.status)} at {verdict.tier} {escape(given)} {verdict.created:%Y-%m-%d}"
            )
            for comparison in verdict.comparisons:
                console.print(f"    {escape(comparison.label)}: {escape(numbers(comparison))}", highlight=False)
    if paper.findings:
        console.print("\n[bold]Findings[/]")
        for finding in paper.findings:
            console.print(f"- {escape(finding.sentence)} [dim](shown by {', '.join(finding.shown_by)})[/]")
    console.print(f"\n[bold]Use[/]\n{escape(paper.usage)}", highlight=False)


def print_verdicts(papers: Sequence[Paper], verdicts: Sequence[Verdict], control: bool = False) -> None:
    """The table of verdicts, and how many there are of each."""
    from paperworks.lab.report.wording import headline

    console = wide_console()
    table = Table(title="Controls: none may hold" if control else None, pad_edge=False, show_lines=True)
    table.add_column("paper", no_wrap=True)
    table.add_column("claim", ratio=3)
    table.add_column("verdict", no_wrap=True)
    table.add_column("numbers", ratio=4)
    sentences = {(p.id, c.id): c.sentence for p in papers for c in p.claims}
    for verdict in verdicts:
        lines = [f"{escape(c.label)}: {escape(numbers(c))}" for c in verdict.comparisons]
        if len(lines) > 4:
            lines = [*lines[:3], f"and {len(lines) - 3} more"]
        if verdict.reason and verdict.status in ("not run", "error"):
            lines.append(escape(headline(verdict.reason))[:300])
        table.add_row(
            verdict.paper,
            escape(sentences[verdict.paper, verdict.claim]),
            status_text(verdict.status),
            "\n".join(lines),
        )
    console.print(table, highlight=False)
    counts = Counter(v.status for v in verdicts)
    console.print("  ".join(f"{counts[s]} {status_text(s)}" for s in STATUSES if counts[s]))
    if control and counts["holds"]:
        console.print("[bold red]a control holds: the check cannot tell the method from its baseline[/]")


def print_arena(arena: Arena, rows: Sequence[Row]) -> None:
    """The table of an arena."""
    table = Table(title=f"{arena.protocol.name}: {arena.metric}", pad_edge=False)
    reference = arena.arms[0].name
    for column in ("arm", "mean", "95 % interval", f"difference from {reference}", "p", "seeds", "time"):
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for row in rows:
        if row.mean is None:
            table.add_row(row.arm, "[red]error[/]", escape(row.error.strip().splitlines()[-1])[:60], "", "", "", "")
            continue
        difference = ""
        if row.difference is not None:
            d = row.difference
            difference = f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
        table.add_row(
            row.arm,
            f"{row.mean.mean:.4f}",
            f"[{row.mean.low:.4f}, {row.mean.high:.4f}]".replace("[", r"\["),
            difference.replace("[", r"\["),
            f"{row.difference.p:.2g}" if row.difference else "",
            str(row.mean.n),
            duration(row.seconds),
        )
    wide_console().print(table, highlight=False)


def print_case(result: CaseResult) -> None:
    """The table of one case of a benchmark."""
    case = result.case
    table = Table(title=case.name, pad_edge=False, title_justify="left")
    table.add_column("contender")
    for column in ("time", "time ratio [95 %]", "peak memory", "memory ratio", "GiB/s"):
        table.add_column(escape(column), justify="right", no_wrap=True)
    for row in result.rows:
        ratio = f"{row['method_over_contender']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        table.add_row(
            f"[bold]{row['contender']}[/]" if row["contender"] == case.method else row["contender"],
            duration(row["seconds"]),
            escape(ratio) if row["contender"] != case.method else "",
            f"{row['peak_memory'] / 2**20:.1f} MiB",
            f"{row['memory_ratio']:.2f}" if row["memory_ratio"] and row["contender"] != case.method else "",
            f"{row['gib_per_second']:.1f}" if "gib_per_second" in row else "",
        )
    console = wide_console()
    console.print(table, highlight=False)
    console.print(escape(f"ratio: {case.method} / contender. {case.floor}"), style="dim")
    for name, why in result.missing.items():
        console.print(f"not installed: {escape(name)} ({escape(why)})", style="dim")
    console.print()
