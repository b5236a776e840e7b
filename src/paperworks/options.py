"""What several commands share: options, how their values are read, and the catalogue they open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from paperworks.feed.store import Store

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Database = Annotated[
    str | None,
    typer.Option("--db", help="Store: a path or an SQLAlchemy URL. [env: PAPERWORKS_DB]", show_default=False),
]
Area = Annotated[str | None, typer.Option(help="Only the papers of this area.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url", envvar="PAPERWORKS_BASE_URL", help="Address at which readers reach the site.", show_default=False
    ),
]
Smtp = Annotated[
    str | None,
    typer.Option(
        "--smtp",
        envvar="PAPERWORKS_SMTP",
        help="Server that takes mail: smtp://user:password@host:587",
        show_default=False,
    ),
]
Sender = Annotated[
    str, typer.Option("--sender", envvar="PAPERWORKS_SENDER", help="Whom mail comes from, as Name <address>.")
]


@contextmanager
def catalogue(db: str | None) -> Iterator[Store]:
    """The store, with the cards of all papers in it."""
    from paperworks.feed.store import Store
    from paperworks.lab import registry

    with Store(db) as store:
        store.add_cards(registry.catalogue())
        yield store


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """End an interrupted command with the exit code 130 and say what it has done."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {kept}", err=True)
        raise typer.Exit(130) from None


def day_of(option: str, text: str | None) -> date | None:
    """The day that an option gives. Raises ValueError."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option}: got {text!r}, wanted a day such as 2026-04-24") from None


def time_of(option: str, text: str | None) -> datetime:
    """The time that an option gives, in UTC where it has no zone; without one the current time. Raises ValueError."""
    if text is None:
        return datetime.now(UTC)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option}: got {text!r}, wanted a time such as 2026-04-24T08:00:00+02:00") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def print_json(data: Any) -> None:
    """Print JSON on standard output."""
    typer.echo(json.dumps(data, indent=2))
