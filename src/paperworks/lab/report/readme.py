"""The table of verdicts in the README, between two markers, and what of it has to match the cards."""

from __future__ import annotations

import re
from typing import Any

from paperworks.lab.report.collect import Report
from paperworks.lab.report.jsonform import report_json
from paperworks.lab.report.markdown import cell, status, table
from paperworks.lab.report.wording import day, plural, short_numbers
from paperworks.lab.tiers import TIERS

BEGIN, END = "<!-- verdicts:begin -->", "<!-- verdicts:end -->"


def readme_table(report: Report) -> str:
    """A foldable table a paper, one row a claim: id, sentence, verdict and the numbers in short."""
    parts = []
    for paper in report_json(report)["papers"]:
        counts = " · ".join(f"{number} {name}" for name, number in paper["counts"].items() if number)
        rows = [
            [f"`{claim['id']}`", cell(claim["sentence"]), status(claim["status"]), cell(_numbers(claim))]
            for claim in paper["claims"]
        ]
        parts += [
            f"<details><summary><b>{_html(paper['title'])}</b> (<code>{_html(paper['id'])}</code>): {counts}</summary>",
            "",
            *table(["claim", "of the paper", "verdict", "measured here"], rows),
            "",
            "</details>",
            "",
        ]
    return "\n".join([*parts, *_origin(report)]).rstrip()


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _numbers(claim: dict[str, Any]) -> str:
    verdict = claim["verdict"]
    numbers = short_numbers(verdict) if verdict is not None else ""
    return numbers or (claim["why"][0] if claim["why"] else "")


def _origin(report: Report) -> list[str]:
    verdicts = list(report.verdicts.values())
    if not verdicts:
        return ["Nothing has been run yet."]
    machines = " and ".join(f"{m.cpu}, {plural(m.cores, 'core')}" for m in report.machines.values())
    newest = day(max(v.created for v in verdicts).isoformat())
    tiers = ", ".join(sorted({v.tier for v in verdicts}, key=TIERS.index))
    where = f" on {machines}" if machines else ""
    return [f"Numbers in brackets are 95 % intervals. Measured at tier {tiers}{where}; newest verdict {newest}."]


def update_readme(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises ValueError where they are missing, doubled or in wrong order."""
    before, _, after = _parts(text)
    return f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}"


def readme_structure(text: str) -> dict[str, list[str]]:
    """The claim ids of every paper in the table between the markers of `text`, in its order.

    Equal to ``{paper.id: [claim.id for claim in paper.claims] for paper in papers}`` unless a paper or claim was added,
    removed, renamed or moved since the table was written.
    """
    structure: dict[str, list[str]] = {}
    paper = ""
    for line in _parts(text)[1].splitlines():
        if found := re.match(r"<details><summary><b>.*</b> \(<code>(.+?)</code>\): ", line):
            paper = found.group(1)
            structure[paper] = []
        elif paper and (found := re.match(r"\| `([^`]+)` \|", line)):
            structure[paper].append(found.group(1))
    return structure


def _parts(text: str) -> tuple[str, str, str]:
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise ValueError(f"text: got {plural(text.count(marker), 'line')} with {marker}, wanted one")
    before, _, rest = text.partition(BEGIN)
    if END not in rest:
        raise ValueError(f"text: {END} stands before {BEGIN}, wanted it after")
    inside, _, after = rest.partition(END)
    return before, inside, after
