"""The report as GitHub-flavoured Markdown, written from the same data as the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from paperworks.lab.records import STATUSES
from paperworks.lab.report import wording
from paperworks.lab.report.collect import Report
from paperworks.lab.report.jsonform import report_json
from paperworks.lab.report.wording import SYMBOLS

Data = Mapping[str, Any]


def render_markdown(report: Report) -> str:
    """`report` as Markdown. Text of cards and errors is escaped; what stands between backticks there stays code."""
    data = report_json(report)
    papers = data["papers"]
    single = len(papers) == 1
    lines: list[str] = []
    if not single:
        n_claims = sum(data["counts"].values())
        lines += [f"# {wording.plural(len(papers), 'paper')}, {wording.plural(n_claims, 'claim')}", ""]
        lines += [_counts(data["counts"]), ""]
        lines += _index(papers)
    for paper in papers:
        lines += _paper(paper, "#" if single else "##")
    lines += _end(data)
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """`text` on one line, shown as it is: no markup, no HTML. What stands between backticks stays code."""
    parts = wording.CODE.split(" ".join(text.split()))
    return "".join(f"`{part}`" if number % 2 else _escape(part, not number) for number, part in enumerate(parts))


def _escape(text: str, is_start: bool) -> str:
    text = re.sub(r"([\\`*\[\]<>|~$&])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    # What would begin a heading, a rule or a list.
    return re.sub(r"^(\d*)([#=]|[-+.)](?=[-+\s]|$))", r"\1\\\2", text) if is_start else text


def cell(text: str) -> str:
    """`text` for a table: as `escape`, and bars in code escaped too."""
    return re.sub(r"(?<!\\)\|", r"\\|", escape(text))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], align: str = "") -> list[str]:
    """A table of cells that are Markdown already; `align` has one of ``l`` and ``r`` a column."""
    head = list(head)
    rule = ["---:" if align[n : n + 1] == "r" else "---" for n in range(len(head))]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def fence(text: str, language: str = "") -> list[str]:
    """A code block, fenced by more backticks than `text` has in a row."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return [f"{mark}{language}", *text.strip("\n").splitlines(), mark]


def status(name: str) -> str:
    """A status with its symbol."""
    return f"{SYMBOLS[name]}\N{NO-BREAK SPACE}{name}".replace("~", "\\~")


def _counts(counts: Data) -> str:
    return " · ".join(f"{counts[name]} {name}" for name in STATUSES if counts[name])


def _index(papers: list[Data]) -> list[str]:
    if not papers:
        return ["No paper was asked for.", ""]
    rows = [
        [
            f"{cell(paper['title'])} (`{paper['id']}`)",
            cell(paper["area"]),
            *(str(paper["counts"][s] or "") for s in STATUSES),
        ]
        for paper in papers
    ]
    return [*table(["paper", "area", *STATUSES], rows, "llrrrrr"), ""]


def _paper(paper: Data, level: str) -> list[str]:
    facts = [
        f"arXiv [{paper['arxiv']}]({paper['url']})" if paper["arxiv"] else "",
        wording.day(paper["date"]),
        f"{escape(paper['authors'])} ({wording.plural(paper['n_authors'], 'author')})",
        escape(paper["venue"]),
        f"code: {escape(paper['code'])}" if paper["code"] else "no code published",
        f"method: `{paper['method']}`",
    ]
    lines = [f"{level} {escape(paper['title'])}", "", " · ".join(filter(None, facts)), ""]
    for paragraph in re.split(r"\n\s*\n", paper["summary"]):
        lines += [escape(paragraph), ""]
    lines += [f"**{_counts(paper['counts'])}**" if paper["claims"] else "No claims.", ""]
    lines += [f"{level}# Claims", ""]
    for claim in paper["claims"]:
        lines += _claim(claim)
    if paper["findings"]:
        lines += [f"{level}# Findings", ""]
        for finding in paper["findings"]:
            shown = ", ".join(f"`{one['claim']}` ({status(one['status'])})" for one in finding["shown_by"])
            lines.append(f"- {escape(finding['sentence'])}" + (f" Shown by {shown}." if shown else ""))
        lines.append("")
    if paper["usage"]:
        lines += [f"{level}# Use it", "", *fence(paper["usage"], "python"), ""]
    lines += [f"{level}# Run its claims", "", *fence(paper["run"], "sh"), ""]
    if paper["provenance"]:
        lines += [f"{level}# Where each part comes from", ""]
        rows = [[cell(one["part"]), cell(one["origin"])] for one in paper["provenance"]]
        lines += [*table(["part", "origin"], rows), ""]
    return lines


def _claim(claim: Data) -> list[str]:
    verdict = claim["verdict"]
    lines = [f"**{status(claim['status'])}**: {escape(claim['sentence'])}", ""]
    lines.append(f"- `{claim['id']}` ({claim['kind']}); {escape(claim['source'])}")
    if claim["published"]:
        lines.append(f"- published: {escape(claim['published'])}")
    lines += [f"- decided by: {escape(criterion['words'])}" for criterion in claim["criteria"]]
    if verdict is not None:
        run = [verdict["tier"], verdict["device"]]
        if verdict["status"] != "not run":
            run += [wording.plural(verdict["seeds"], "seed")] if verdict["seeds"] > 1 else []
            run.append(wording.duration(verdict["seconds"]))
        run.append(wording.day(verdict["created"]))
        run += [f"`{name}={value}`" for name, value in verdict["changed_settings"].items()]
        lines.append(f"- run: {', '.join(run)}")
    lines += [f"- {escape(reason)}" for reason in claim["why"]]
    if verdict is None:
        for bound in claim["bounds"]:
            lines.append(f"- expected: {escape(bound['label'] + ' ' + wording.bound_words(bound['text']))}")
    if claim["note"]:
        lines.append(f"- note: {escape(claim['note'])}")
    lines.append("")
    if verdict is not None:
        lines += _numbers(verdict)
        for error in (one for one in verdict["errors"] if len(one["first"]) > 1):
            cut = ["", f"... {wording.plural(error['omitted'], 'line')} left out ...", ""] if error["omitted"] else []
            lines += [*fence("\n".join([*error["first"], *cut, *error["last"]]), "text"), ""]
    if len(claim["history"]) > 1:
        lines += ["History:", ""]
        for past in claim["history"]:
            said = escape(past["numbers"] or past["reason"])
            lines.append(
                f"- {wording.day(past['created'])}, {past['tier']}: {status(past['status'])}" + f" {said}".rstrip()
            )
        lines.append("")
    return lines


def _numbers(verdict: Data) -> list[str]:
    measured = [c for c in verdict["comparisons"] if c["direction"]]
    exact = [c for c in verdict["comparisons"] if not c["direction"]]
    lines = []
    if measured:
        head = ["criterion", "", "estimate", "95 % interval", "p", "Holm's level", "interval at that level", "d", "n"]
        rows = []
        for comparison in measured:
            words = wording.comparison_words(comparison)
            interval = (
                f"{words['interval']} ({words['interval_kind']})" if words["interval_kind"] else words["interval"]
            )
            said = [words[name] for name in ("level", "adjusted", "effect", "n")]
            side = status(comparison["side"])
            rows.append([cell(comparison["label"]), side, words["estimate"], interval, cell(words["p"]), *said])
        lines += [*table(head, rows, "llrrrrrrr"), ""]
    if exact:
        rows = [
            [
                cell(comparison["label"] or "value"),
                wording.exact_number(comparison["observed"]),
                cell(wording.bound_words(comparison["expected"])),
                status(comparison["side"]),
            ]
            for comparison in exact
        ]
        lines += [*table(["what", "observed", "expected", ""], rows, "lrrl"), ""]
    return lines


def _end(data: Data) -> list[str]:
    lines = ["---", "", "## How verdicts are made", ""]
    lines += [f"{number}. {escape(said)}" for number, said in enumerate(wording.HOW_VERDICTS_ARE_MADE, 1)]
    lines += ["", "## Where and with what", ""]
    for machine in data["machines"]:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines.append(
            f"- `{machine['id']}`: {escape(machine['cpu'])}, {wording.plural(machine['cores'], 'core')}, "
            f"{machine['memory_gib']:.1f} GiB, accelerator: {escape(machine['accelerator'] or 'none')}, "
            f"{escape(machine['os'])}, Python {machine['python']}, {escape(versions)}"
        )
    made = f"Made on {wording.day(data['created'])} by paperworks {data['version']} with"
    return [*lines, "", made, "", *fence(data["command"], "sh")]
