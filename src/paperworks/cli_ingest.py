"""The command ``paperworks ingest``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paperworks.options import Database, Json, catalogue, day_of, interruptible, print_json

if TYPE_CHECKING:
    from paperworks.feed.ingest import Ingested
    from paperworks.feed.records import PaperRecord
    from paperworks.feed.skipped import Skipped
    from paperworks.feed.store import Store

_BELONGS = {
    "daily": ("date", "week", "month", "query", "limit", "base-url", "offline"),
    "arxiv": ("query", "category", "since", "limit", "base-url", "offline"),
    "oai": ("since", "until", "set", "base-url", "offline"),
    "file": ("page-date",),
}
"""Options of each source."""


def ingest(
    source: Annotated[str | None, typer.Option(help="daily, arxiv or oai.")] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A saved page, JSON, Atom or OAI-PMH (may be given again); - reads standard input.",
        ),
    ] = None,
    day: Annotated[str | None, typer.Option("--date", help="Day of the daily list (default: today).")] = None,
    week: Annotated[str | None, typer.Option(help="ISO week of the daily list, as 2026-W17.")] = None,
    month: Annotated[str | None, typer.Option(help="Month of the daily list, as 2026-04.")] = None,
    query: Annotated[str | None, typer.Option(help="Query, in the syntax of the source.")] = None,
    category: Annotated[str | None, typer.Option(help="Category of arXiv, as cs.LG.")] = None,
    since: Annotated[str | None, typer.Option(help="First day, as 2026-04-24.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day.")] = None,
    within: Annotated[str | None, typer.Option("--set", help="Set of OAI-PMH, as cs.")] = None,
    limit: Annotated[int | None, typer.Option(help="Records of a query at most (default: 1000).", min=1)] = None,
    page_date: Annotated[
        str | None,
        typer.Option(help="Day a page was saved, for dates without a year (default: when the file was written)."),
    ] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Address of the source.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only what is in the cache.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where anything was skipped.")] = False,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Read papers into the catalogue: the daily list, arXiv, or files. What was read before is brought up to date.

    An item that is no paper is skipped, with the reason, and the others are read.
    """
    from paperworks.feed.ingest import Ingested
    from paperworks.feed.merging import AddReport

    given = {
        "date": day, "week": week, "month": month, "query": query, "category": category, "since": since,
        "until": until, "set": within, "limit": limit, "page-date": page_date, "base-url": base_url,
        "offline": offline or None,
    }  # fmt: skip
    _check_ingest(source, files, given)
    skipped: list[Skipped] = []
    made, trouble = Ingested(AddReport()), ""
    with catalogue(db) as store, interruptible("what was added is kept; run the same command again to go on"):
        if files:
            records = _of_files(files, day_of("--page-date", page_date), skipped)
        else:
            records = _of_source(str(source), given, skipped)
        made, trouble = _add(store, records, skipped)
    if as_json:
        print_json(made.to_json() | ({"error": trouble} if trouble else {}))
    else:
        from paperworks.terminal_feed import print_ingested

        print_ingested(made)
        if trouble:
            typer.echo(f"paperworks: {trouble}", err=True)
    raise typer.Exit(int(bool(trouble) or (bool(made.skipped) and (strict or made.read == 0))))


def _check_ingest(source: str | None, files: list[str] | None, given: dict[str, Any]) -> None:
    """Raise ValueError where the options do not go together."""
    if (source is None) == (not files):
        raise ValueError("ingest: wanted --source daily, arxiv or oai, or --from FILE")
    kind = "file" if source is None else source
    if kind not in _BELONGS or source == "file":
        raise ValueError(f"--source: got {source!r}, wanted daily, arxiv or oai")
    for name, value in given.items():
        if value is not None and name not in _BELONGS[kind]:
            where = "--from" if source is None else f"--source {source}"
            raise ValueError(f"--{name}: not an option of {where}")
    lists = [name for name in ("date", "week", "month", "query") if given[name] is not None]
    if source == "daily" and len(lists) > 1:
        raise ValueError(f"--{lists[1]}: wanted only one of --date, --week, --month and --query")
    if source == "daily" and given["limit"] is not None and given["query"] is None:
        raise ValueError("--limit: wanted only with --query")
    if source == "oai" and given["since"] is None:
        raise ValueError("--since: got none, wanted the first day to harvest")


def _of_source(source: str, given: dict[str, Any], skipped: list[Skipped]) -> Iterator[PaperRecord]:
    from paperworks.feed import ingest as sources

    offline, base_url, limit = bool(given["offline"]), given["base-url"], given["limit"]
    since, until = day_of("--since", given["since"]), day_of("--until", given["until"])
    if source == "daily":
        daily = sources.daily_client(base_url, offline=offline)
        daily.skipped = skipped
        if given["week"] is not None:
            yield from daily.week(given["week"])
        elif given["month"] is not None:
            yield from daily.month(given["month"])
        elif given["query"] is not None:
            yield from daily.search(given["query"], limit)
        else:
            yield from daily.day(given["date"] or datetime.now(UTC).date())
        return
    arxiv = sources.arxiv_client(base_url, offline=offline)
    arxiv.skipped = skipped
    if source == "oai":
        assert since is not None
        yield from arxiv.harvest(since, until, set=given["set"])
    else:
        query = sources.arxiv_query(given["query"], given["category"])
        yield from sources.newest(arxiv, query, since, limit or 1000)


def _of_files(files: list[str], page_date: date | None, skipped: list[Skipped]) -> Iterator[PaperRecord]:
    """The records of the files. One that cannot be read is skipped where there are others."""
    from paperworks.feed.ingest import parse_any, read_file
    from paperworks.feed.skipped import Skipped

    for name in files:
        found: list[Skipped] = []
        try:
            if name == "-":
                records = parse_any(sys.stdin.buffer.read(), page_date or datetime.now(UTC).date(), found)
            else:
                written = datetime.fromtimestamp(Path(name).stat().st_mtime, UTC).date()
                records = read_file(name, page_date or written, found)
        except (ValueError, OSError) as error:
            if len(files) == 1:
                raise
            skipped.append(Skipped(name, str(error)))
            continue
        skipped += found if len(files) == 1 else [Skipped(f"{name}: {one.item}", one.reason) for one in found]
        yield from records


def _add(store: Store, records: Iterable[PaperRecord], skipped: list[Skipped]) -> tuple[Ingested, str]:
    """What was added, and what ended it before the source did."""
    from rich.console import Console

    from paperworks.feed.clients import SourceError
    from paperworks.feed.ingest import Ingested
    from paperworks.feed.ingest import ingest as add
    from paperworks.feed.merging import AddReport
    from paperworks.feed.search import Search

    made, trouble = Ingested(AddReport()), ""
    with Console(stderr=True).status("reading") as status:
        try:
            for made in add(store, records, skipped):
                status.update(f"{made.read:,} records")
        except (SourceError, ValueError) as error:
            if not made.read and not isinstance(error, SourceError):
                raise  # nothing was understood: a wrong option or file
            made, trouble = Ingested(made.added, tuple(skipped)), str(error)
        if made.read > made.added.unchanged:
            status.update("taking the papers into the search")
            Search(store).refresh()
    return made, trouble
