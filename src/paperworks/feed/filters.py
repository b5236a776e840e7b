"""What a search is restricted to, as conditions on the papers in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, literal_column, select, table

from paperworks.feed.store import Store
from paperworks.feed.tables import papers
from paperworks.feed.terms import words
from paperworks.feed.verdicts import Verdicts
from paperworks.lab.records import STATUSES

__all__ = ["NAMES", "check", "conditions"]

NAMES = ("since", "until", "area", "author", "code", "verdict")

MOST_PAPERS = 20_000
"""Of one author: the newest."""


def check(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The filters that are set, by name. Raises ValueError and TypeError for what is no filter."""
    found = {name: value for name, value in (filters or {}).items() if value is not None}
    for name, value in found.items():
        if name not in NAMES:
            raise ValueError(f"filters: got {name!r}, wanted {', '.join(NAMES)}")
        if name in ("since", "until"):
            if not isinstance(value, date) or isinstance(value, datetime):
                raise TypeError(f"{name}: got {type(value).__name__}, wanted a date")
        elif name == "code":
            if not isinstance(value, bool):
                raise TypeError(f"code: got {type(value).__name__}, wanted True or False")
        elif not isinstance(value, str):
            raise TypeError(f"{name}: got {type(value).__name__}, wanted a string")
    if "since" in found and "until" in found and found["since"] > found["until"]:
        raise ValueError(f"since: got {found['since']}, wanted a day not after until, {found['until']}")
    if found.get("verdict", "any") not in (*STATUSES, "any"):
        raise ValueError(f"verdict: got {found['verdict']!r}, wanted any, {', '.join(STATUSES)}")
    return found


def conditions(store: Store, filters: Mapping[str, Any], verdicts: Verdicts | None) -> list[ColumnElement[bool]]:
    """What a paper has to meet.

    since, until: its own date, and where that is not known the day it entered the feed. area: as on its card. author:
    one of the names has all these words, whatever case and accents. code: whether an address of code is known.
    verdict: a claim of its card has this status; ``any``: holds, inconclusive or fails, that is, was measured.
    """
    day = func.coalesce(papers.c.published, papers.c.first_seen)
    found: list[ColumnElement[bool]] = []
    if "since" in filters:
        found.append(day >= filters["since"])
    if "until" in filters:
        found.append(day <= filters["until"])
    if "area" in filters:
        found.append(papers.c.area == filters["area"])
    if "code" in filters:
        has = _has_code(store)
        found.append(has if filters["code"] else ~has)
    if "verdict" in filters:
        found.append(papers.c.card.in_(_cards(filters["verdict"], verdicts or Verdicts(store))))
    if "author" in filters:
        found.append(papers.c.number.in_(_by_author(store, filters["author"])))
    return found


def _has_code(store: Store) -> ColumnElement[bool]:
    if store.database.engine.name == "postgresql":
        has: ColumnElement[bool] = func.jsonb_exists(papers.c.data, "code")
        return has
    return func.json_type(papers.c.data, "$.code").is_not(None)


def _cards(status: str, verdicts: Verdicts) -> list[str]:
    wanted = ("holds", "inconclusive", "fails") if status == "any" else (status,)
    counted = {str(paper["id"]): paper["counts"] for paper in verdicts.report()["papers"]}
    return [card for card, counts in counted.items() if any(counts.get(name, 0) for name in wanted)]


def _by_author(store: Store, author: str) -> list[int]:
    """The papers of an author; the names are among the keywords, and then compared one by one."""
    asked = set(words(author))
    if not asked:
        return []
    query = select(papers.c.number).order_by(papers.c.number.desc()).limit(MOST_PAPERS)
    if store.database.engine.name == "postgresql":
        folded = func.regexp_replace(
            func.normalize(papers.c.keywords, literal_column("NFKD")), "[\u0300-\u036f]", "", "g"
        )
        query = query.where(*(folded.ilike(f"%{word}%") for word in asked))
    else:
        quoted = " AND ".join(f'"{word}"' for word in asked)
        match = literal_column("search_words").op("MATCH")(f"keywords : ({quoted})")
        having: Any = select(literal_column("rowid")).select_from(table("search_words")).where(match)
        query = query.where(papers.c.number.in_(having))
    with store.database.read() as connection:
        numbers = list(connection.scalars(query))
    records = store.numbered(numbers)
    return [n for n in numbers if any(asked <= set(words(name)) for name in records[n].authors or ())]
