"""The commands of the catalogue: ``paperworks search | trending | ingest | digest | serve``."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paperworks.cli_ingest import ingest
from paperworks.options import (
    Area,
    BaseUrl,
    Database,
    Json,
    Sender,
    Smtp,
    catalogue,
    day_of,
    interruptible,
    print_json,
    time_of,
)

if TYPE_CHECKING:
    from email.message import EmailMessage

    from paperworks.feed.search import Search

commands = typer.Typer()
commands.command()(ingest)

SENDER = "paperworks <papers@localhost>"
Since = Annotated[str | None, typer.Option(help="Only from this day on, as 2026-04-24.")]
Until = Annotated[str | None, typer.Option(help="Only until this day.")]


@commands.command()
def search(
    text: Annotated[list[str] | None, typer.Argument(help="What to look for.", metavar="[TEXT]...")] = None,
    area: Area = None,
    author: Annotated[str | None, typer.Option(help="Only with this author.")] = None,
    since: Since = None,
    until: Until = None,
    verdict: Annotated[
        str | None, typer.Option(help="Only with a claim of this verdict: holds, fails, ..., or any.")
    ] = None,
    code: Annotated[
        bool | None, typer.Option("--code/--no-code", help="Only with, or without, the authors' code.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Number of papers.", min=1, max=1000)] = 10,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="How well the judged queries are answered, instead of a search.")
    ] = False,
    split: Annotated[
        str, typer.Option(help="With --evaluate: test, tune (on which the weights were chosen) or all.")
    ] = "test",
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Find papers by words, in spite of typing errors, and by meaning."""
    query = " ".join(text or ())
    if evaluate == bool(query.strip()):
        raise ValueError("search: wanted words to look for, or --evaluate")
    filters = {
        "area": area, "author": author, "since": day_of("--since", since), "until": day_of("--until", until),
        "verdict": verdict, "code": code,
    }  # fmt: skip
    filters = {name: value for name, value in filters.items() if value is not None}
    if evaluate and filters:
        raise ValueError(f"--{next(iter(filters))}: not an option of --evaluate")
    from paperworks.feed.search import Search
    from paperworks.feed.verdicts import Verdicts

    with catalogue(db) as store:
        verdicts = Verdicts(store)
        made = Search(store, verdicts=verdicts)
        if evaluate:
            _evaluate(made, split, as_json)
            return
        results = made.query(query, filters, limit=limit)
        counts = [verdicts.counts(item.paper.card) for item in results.items]
    if as_json:
        from paperworks.feed.records import to_mapping

        items = [
            {
                "id": item.paper.key, **to_mapping(item.paper), "score": item.score, "parts": item.parts,
                "snippet": item.snippet, "marks": item.marks, "why": item.why, "verdicts": count,
            }
            for item, count in zip(results.items, counts, strict=True)
        ]  # fmt: skip
        print_json({"query": query, "total": results.total, "took_ms": results.took_ms, "items": items})
        return
    from paperworks.terminal_feed import print_found

    print_found(results, counts)


def _evaluate(made: Search, split: str, as_json: bool) -> None:
    from paperworks.feed.evaluation import judged

    found = made.evaluate(judged(None if split == "all" else split))
    if as_json:
        print_json(found)
        return
    from paperworks.terminal_feed import print_evaluation

    print_evaluation(found)


@commands.command()
def trending(
    window: Annotated[str, typer.Option(help="day, week or month.")] = "day",
    method: Annotated[str, typer.Option(help="decay, hn, hot or top.")] = "decay",
    rising: Annotated[bool, typer.Option("--rising", help="By how recent the votes are, instead of how many.")] = False,
    limit: Annotated[int, typer.Option(help="Number of papers.", min=1)] = 20,
    now: Annotated[str | None, typer.Option(help="Another time than now, as 2026-04-24T08:00:00Z.")] = None,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """The papers that readers turn to now."""
    from paperworks.feed import trends
    from paperworks.feed.verdicts import Verdicts

    when = time_of("--now", now)
    with catalogue(db) as store:
        if rising:
            found = trends.rising(store, when, limit)
        else:
            found = trends.trending(store, when, window, method, limit)
        verdicts = Verdicts(store)
        counts = [verdicts.counts(paper.card) for paper, _ in found]
    if as_json:
        from paperworks.feed.records import to_mapping

        print_json([{"id": paper.key, **to_mapping(paper), "score": score} for paper, score in found])
        return
    from paperworks.terminal_feed import print_ranked

    print_ranked(found, counts)


# digest and serve


def _secret(db: str | None) -> str:
    """What tokens are signed with: of the environment, else a random one that is kept beside the store."""
    if given := os.environ.get("PAPERWORKS_SECRET"):
        return given
    import platformdirs

    from paperworks.lab.store.database import locate

    url = locate(db)
    if url.drivername == "sqlite":
        path = Path(str(url.database)).absolute()
        path = path.with_name(path.name + ".secret")
    else:
        path = platformdirs.user_data_path("paperworks", appauthor=False) / "paperworks.secret"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with open(made, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ValueError(f"{path}: others can read it, wanted a file for its owner alone (chmod 600)")
    for _ in range(50):  # another process may have made the file and not have written yet
        if secret := path.read_text("ascii").strip():
            return secret
        time.sleep(0.02)
    raise ValueError(f"{path}: got an empty file, wanted a secret; delete it for a new one")


@commands.command()
def digest(
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="FOLDER", help="Write the mails into files and send none.")
    ] = None,
    smtp: Smtp = None,
    now: Annotated[str | None, typer.Option(help="Another time than now, as 2026-04-24T08:00:00Z.")] = None,
    base_url: BaseUrl = None,
    sender: Sender = SENDER,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Send the digests that are due, one a subscriber and period. Run it by a timer: nothing is sent twice."""
    if dry_run is None and (smtp is None or base_url is None):
        raise ValueError("digest: wanted --smtp and --base-url, or --dry-run FOLDER")
    from paperworks.feed.digest import Digest
    from paperworks.feed.mail import SmtpTransport
    from paperworks.feed.search import Search
    from paperworks.feed.subscriptions import Subscriptions
    from paperworks.feed.verdicts import Verdicts

    when = time_of("--now", now)
    transport: Any = SmtpTransport.from_url(smtp) if smtp is not None else None  # a dry run sends nothing
    if dry_run is not None:
        dry_run.mkdir(parents=True, exist_ok=True)
    with catalogue(db) as store, interruptible("what was sent is kept; the next run goes on"):
        verdicts = Verdicts(store)
        made = Digest(
            store,
            Search(store, verdicts=verdicts),
            Subscriptions(store, _secret(db)),
            base_url=base_url or "http://127.0.0.1:8000",
            sender=sender,
            verdicts=verdicts,
        )
        deliveries = made.send(transport, when, dry_run)
    if as_json:
        from dataclasses import asdict

        print_json([asdict(delivery) for delivery in deliveries])
    else:
        from paperworks.terminal_feed import print_deliveries

        print_deliveries(deliveries)
    raise typer.Exit(int(any(delivery.status in ("failed", "later", "unknown") for delivery in deliveries)))


class MailServer:
    """The server at an address as `SmtpTransport.from_url` takes it, for a site of several processes: each connects.

    Raises ValueError for an address that is none.
    """

    def __init__(self, url: str) -> None:
        from paperworks.feed.mail import SmtpTransport

        self._url, self._transport = url, SmtpTransport.from_url(url)

    def __reduce__(self) -> tuple[type[MailServer], tuple[str]]:
        return MailServer, (self._url,)

    def send(self, message: EmailMessage) -> None:
        """Send a message; raises what `SmtpTransport.send` does."""
        self._transport.send(message)


@commands.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.", min=1, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    base_url: BaseUrl = None,
    owner_token: Annotated[
        str | None,
        typer.Option(
            "--owner-token", envvar="PAPERWORKS_OWNER_TOKEN", help="What lets the owner in.", show_default=False
        ),
    ] = None,
    allow_runs: Annotated[
        bool | None,
        typer.Option(
            "--allow-runs/--no-runs",
            help="Whether the owner may run claims from the page (default: where only this machine can reach it).",
            show_default=False,
        ),
    ] = None,
    proxy_headers: Annotated[
        bool, typer.Option("--proxy-headers", help="Believe a proxy on this machine about the addresses of readers.")
    ] = False,
    smtp: Smtp = None,
    sender: Sender = SENDER,
    db: Database = None,
) -> None:
    """The site: what is new, search, every paper with its verdicts, feeds and the digest's subscription."""
    if allow_runs and owner_token is None:
        raise ValueError("--allow-runs: wanted an --owner-token as well, for only its owner may run claims")
    if base_url is None:
        if host in ("0.0.0.0", "::"):
            raise ValueError(f"--base-url: got none, wanted the address that readers of --host {host} use")
        base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        from paperworks.web import Settings
        from paperworks.web.server import serve as run
    except ImportError as error:
        raise ImportError(f"the site needs {error.name}: pip install 'paperworks[web]'", name=error.name) from error
    settings = Settings(
        store=db,
        secret=_secret(db),
        base_url=base_url,
        transport=MailServer(smtp) if smtp is not None else None,
        owner_token=owner_token,
        host=host,
        allow_runs=allow_runs,
        sender=sender,
        proxy_headers=proxy_headers,
    )
    typer.echo(f"serving at {base_url} (Ctrl-C ends it)")
    try:
        run(settings, host, port, workers)
    except KeyboardInterrupt:  # how a server is ended, and no error
        raise typer.Exit(0) from None
