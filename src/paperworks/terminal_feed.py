"""What the commands of the catalogue print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from paperworks.terminal import MARKS, STYLES, wide_console

if TYPE_CHECKING:
    from paperworks.feed.delivery import Delivery
    from paperworks.feed.ingest import Ingested
    from paperworks.feed.records import PaperRecord
    from paperworks.feed.search import Item, Results

SHOWN_SKIPS = 20

Counts = Mapping[str, int] | None


def print_ingested(made: Ingested) -> None:
    """How a source changed the catalogue, and what was skipped, with the reasons."""
    out, added = wide_console(), made.added
    out.print(
        f"{_plural(made.read, 'record')}: {added.new:,} new, {added.updated:,} updated, {added.merged:,} merged, "
        f"{added.unchanged:,} unchanged",
        highlight=False,
    )
    if made.skipped:
        out.print(f"[yellow]{len(made.skipped):,} skipped[/]", highlight=False)
        for one in made.skipped[:SHOWN_SKIPS]:
            out.print(f"  {escape(one.item)}: {escape(one.reason)}", highlight=False)
        if len(made.skipped) > SHOWN_SKIPS:
            out.print(f"  and {len(made.skipped) - SHOWN_SKIPS:,} more (--json lists all)", highlight=False)


def print_found(results: Results, counts: Sequence[Counts]) -> None:
    """What a search found, with what matched in bold."""
    out = wide_console()
    for place, (item, count) in enumerate(zip(results.items, counts, strict=True), 1):
        out.print(Text.assemble((f"{place:>3}  ", "dim"), (item.paper.title, "bold")))
        out.print(Text("     ").append_text(_facts(item.paper, count)))
        if item.snippet:
            out.print(Padding(_marked(item), (0, 0, 0, 5)))
        if words := item.why.partition("nearest sentence: ")[0].rstrip("; "):  # that sentence is the snippet
            out.print(Padding(Text(words, "dim"), (0, 0, 0, 5)))
    out.print(f"{_plural(results.total, 'paper')} in {results.took_ms:.1f} ms", style="dim", highlight=False)


def _marked(item: Item) -> Text:
    text = Text(item.snippet)
    for start, end in item.marks:
        text.stylize("bold yellow", start, end)
    return text


def _facts(paper: PaperRecord, counts: Counts) -> Text:
    day = paper.first_seen or paper.published
    said = [paper.card or paper.key, paper.area, day.isoformat() if day else None]
    facts = Text(" · ".join(filter(None, said)), "dim")
    if counts is not None:
        for status, number in counts.items():
            if number:
                facts.append("  ").append(f"{MARKS[status]} {number} {status}", STYLES[status])
    elif paper.card is not None:
        facts.append("  not carried yet", "dim")
    return facts


def print_ranked(found: Sequence[tuple[PaperRecord, float]], counts: Sequence[Counts]) -> None:
    """Papers with their scores, best first."""
    out = wide_console()
    if not found:
        out.print("nothing yet: no votes, here or at the source")
    for (paper, score), count in zip(found, counts, strict=True):
        out.print(Text.assemble((f"{score:>10.4g}  ", "cyan"), (paper.title, "bold")))
        out.print(Text(" " * 12).append_text(_facts(paper, count)))


def print_deliveries(deliveries: Sequence[Delivery]) -> None:
    """What became of each digest."""
    out = wide_console()
    table = Table(box=None, pad_edge=False)
    for column in ("status", "subscriber", "period", "papers", "reason"):
        table.add_column(column, justify="right" if column == "papers" else "left")
    for one in deliveries:
        table.add_row(one.status, escape(one.email), one.period, str(len(one.papers)), escape(one.reason))
    out.print(table if deliveries else "no digest is due", highlight=False)


def print_evaluation(found: Mapping[str, Any]) -> None:
    """How well the judged queries are answered, by kind of query and by each list alone."""
    from paperworks.feed.evaluation import MEASURES

    out = wide_console()
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in MEASURES:
        table.add_column(name, justify="right")

    def row(name: str, scores: Mapping[str, Any], style: str = "") -> None:
        table.add_row(escape(name), *(f"{scores[measure]:.3f}" for measure in MEASURES), style=style)

    row(f"all {found['queries']} queries", found, "bold")
    for kind, scores in found["by_kind"].items():
        row(f"  {kind}", scores)
    for name, scores in found["lists"].items():
        row(f"{name} alone", scores, "bold")
        for kind, its in scores["by_kind"].items():
            row(f"  {kind}", its)
    out.print(table, highlight=False)
    gain = found["default_vs_words"]
    out.print(
        f"nDCG@10 over words alone: {gain['difference']:+.3f} \\[{gain['low']:+.3f}, {gain['high']:+.3f}], "
        f"p = {gain['p']:.2g} (paired bootstrap over queries)",
        highlight=False,
    )
    weights = ", ".join(f"{name} {weight:g}" for name, weight in found["weights"].items())
    out.print(f"weights: {weights}; meaning by {escape(found['model'])}", style="dim", highlight=False)


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
