"""The report as one page: a single file without scripts or requests, its figures and style inside it.

`environment` and `stylesheet` are what other pages build on: ``paper.html.j2`` holds the body of a paper's page as a
macro over the data of `report_json`, ``macros.html.j2`` the badges, strips, plots and tables.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from paperworks.lab.records import STATUSES
from paperworks.lab.report import wording
from paperworks.lab.report.collect import Report
from paperworks.lab.report.figures import draw_all
from paperworks.lab.report.intervals import interval_plot
from paperworks.lab.report.jsonform import report_json


def render_html(report: Report) -> str:
    """`report` as one self-contained HTML page."""
    template = environment().get_template("report.html.j2")
    return template.render(report=report_json(report), figures=draw_all(report))


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The Jinja2 environment of the templates. Everything is escaped; an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("paperworks.lab.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "bound_words": wording.bound_words,
        "by_area": by_area,
        "day": wording.day,
        "duration": wording.duration,
        "exact_number": wording.exact_number,
        "in_words": wording.comparison_words,
        "inline": inline,
        "plural": wording.plural,
        "prose": prose,
        "zip": zip,
        "short_numbers": wording.short_numbers,
    }
    made.globals |= {
        "HOW": wording.HOW_VERDICTS_ARE_MADE,
        "KINDS": wording.KINDS,
        "STATUSES": STATUSES,
        "interval_plot": interval_plot,
        "stylesheet": lambda: Markup(stylesheet()),
    }
    made.tests["web_address"] = is_web_address
    return made


@lru_cache(maxsize=1)
def stylesheet() -> str:
    """The style sheet of every page."""
    return files("paperworks.lab.report").joinpath("templates/report.css").read_text(encoding="utf-8")


def is_web_address(text: str) -> bool:
    """Whether a link may lead there: http and https only."""
    return re.match(r"https?://[^\s/]+", text, re.IGNORECASE) is not None


def inline(text: str) -> Markup:
    """Text of a card, escaped, with what stands between backticks as code."""
    parts = wording.CODE.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


def prose(text: str) -> Markup:
    """Text of a card as paragraphs, parted by empty lines."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
    return Markup("\n").join(Markup("<p>{}</p>").format(inline(part)) for part in paragraphs)


def by_area(papers: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Papers grouped by area, areas in the order of their first paper."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for paper in papers:
        groups.setdefault(paper["area"], []).append(paper)
    return list(groups.items())
