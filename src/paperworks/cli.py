"""The command line: ``paperworks list | show | run | arena | bench | report``, and the commands of `cli_feed`.

Exit codes: 0 all ran, 1 something ended in an error (with ``--strict``: or a claim does not hold), 2 bad usage,
130 interrupted. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paperworks import cli_feed
from paperworks.options import Area, Database, Json

if TYPE_CHECKING:
    from paperworks.lab.nouns import Paper
    from paperworks.lab.records import Verdict

app = typer.Typer(
    help="Daily Papers that run: papers as drop-in components, their claims as verdicts measured on your machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Tier = Annotated[str, typer.Option(help="How much work: smoke, desk, gpu or full.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting of the protocols.")
]
Workers = Annotated[int | None, typer.Option(help="Worker processes of the local engine (default: one a core).")]
EngineName = Annotated[str, typer.Option("--engine", help="local, or ray for a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="Address of the Ray cluster.")]
Device = Annotated[str | None, typer.Option(help="Where trials run, e.g. cpu or cuda.")]


def _chosen(ids: list[str] | None, area: str | None, everything: bool = False) -> list[Paper]:
    from paperworks.lab import registry

    if ids:
        return [registry.find(id) for id in dict.fromkeys(ids)]
    if area is not None and area not in registry.areas():
        raise ValueError(f"area: got {area!r}, wanted one of {', '.join(registry.areas())}")
    if area is None and not everything:
        raise ValueError("name one or more papers (see `paperworks list`), or give --area or --all")
    return list(registry.papers(area))


def _described(papers: list[Paper], db: str | None) -> list[dict[str, Any]]:
    """Cards with their claims and the verdicts the store has, in the form that a report has them."""
    from paperworks.lab.report import collect, report_json
    from paperworks.lab.store import open_store

    with open_store(db) as store:
        described: list[dict[str, Any]] = report_json(collect(store, papers))["papers"]
    return described


@app.command("list")
def list_papers(area: Area = None, db: Database = None, as_json: Json = False) -> None:
    """The papers that are carried."""
    papers = _chosen(None, area, everything=True)
    if as_json:
        typer.echo(json.dumps(_described(papers, db), indent=2))
        return
    from paperworks.terminal import print_papers

    print_papers(papers)


@app.command()
def show(id: str, db: Database = None, as_json: Json = False) -> None:
    """A paper's card: summary, claims with their criteria, findings, and the verdicts the store has."""
    papers = _chosen([id], None)
    if as_json:
        typer.echo(json.dumps(_described(papers, db)[0], indent=2))
        return
    from paperworks.lab.store import open_store
    from paperworks.terminal import print_card

    with open_store(db) as store:
        verdicts = store.latest_verdicts(paper=papers[0].id)
    print_card(papers[0], verdicts)


@app.command()
def run(
    ids: Annotated[list[str] | None, typer.Argument(help="Papers, by id.", metavar="[ID]...")] = None,
    area: Area = None,
    everything: Annotated[bool, typer.Option("--all", help="Every paper.")] = False,
    claim: Annotated[list[str] | None, typer.Option(help="Only this claim (may be given again).")] = None,
    tier: Tier = "desk",
    settings: Settings = None,
    control: Annotated[
        bool, typer.Option("--control", help="Put each measured claim's baseline in its method's place: none may hold.")
    ] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Run again what the store has.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 unless every claim that ran holds.")] = False,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    device: Device = None,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Measure the claims of papers. What the store has is not run again."""
    from paperworks.lab.engines import make_engine
    from paperworks.lab.runner import run as run_claims
    from paperworks.lab.settings import parse
    from paperworks.lab.store import open_store
    from paperworks.terminal import Display, print_verdicts

    papers = _chosen(ids, area, everything)
    if claim is not None and len(papers) != 1:
        raise ValueError(f"--claim: got {len(papers)} papers, wanted one")
    with open_store(db) as store, Display(quiet=as_json, control=control) as display:
        verdicts = run_claims(
            papers,
            store,
            make_engine(engine, workers=workers, address=address),
            tier=tier,
            settings=parse(settings or []),
            claims=claim,
            control=control,
            device=device,
            rerun=rerun,
            watcher=display.watcher,
        )
    if as_json:
        typer.echo(json.dumps([v.to_json() for v in verdicts], indent=2))
    else:
        print_verdicts(papers, verdicts, control)
    raise typer.Exit(_exit_code(verdicts, strict, control))


def _exit_code(verdicts: list[Verdict], strict: bool, control: bool) -> int:
    statuses = [v.status for v in verdicts]
    if "error" in statuses:
        return 1
    if control:
        return int("holds" in statuses)
    return int(strict and any(s in ("fails", "inconclusive") for s in statuses))


@app.command()
def arena(
    area: str,
    tier: Tier = "desk",
    settings: Settings = None,
    figure: Annotated[Path | None, typer.Option(help="Where the figure goes (.svg, .png or .pdf).")] = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    device: Device = None,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """All the arms an area has on one shared protocol: a table and a figure, with intervals."""
    from paperworks.lab import arena as arenas
    from paperworks.lab.engines import make_engine
    from paperworks.lab.settings import parse
    from paperworks.lab.store import open_store
    from paperworks.terminal import Display, print_arena

    found = arenas.find_arena(area)
    with open_store(db) as store, Display(quiet=as_json) as display:
        rows = arenas.run_arena(
            found,
            store,
            make_engine(engine, workers=workers, address=address),
            tier=tier,
            settings=parse(settings or []),
            device=device,
            watcher=display.watcher,
        )
    path = figure or Path("reports") / f"arena-{area}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    _save_arena(found, rows, path)
    if as_json:
        typer.echo(json.dumps(arenas.arena_json(found, rows), indent=2))
    else:
        print_arena(found, rows)
        typer.echo(f"figure: {path}")
    raise typer.Exit(int(any(row.error for row in rows)))


def _save_arena(found: Any, rows: Any, path: Path) -> None:
    from matplotlib.figure import Figure

    from paperworks.lab.arena import draw_arena

    picture = Figure(figsize=(7.2, 0.6 + 0.32 * len(rows)), layout="constrained")
    draw_arena(picture, found, rows)
    try:
        picture.savefig(path)
    except ValueError as error:
        raise ValueError(f"--figure: got {path}: {error}") from None


@app.command()
def bench(
    id: str,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=6)] = 20,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """A method beside its peers in one run: time and peak memory, and their ratios."""
    import torch

    from paperworks.lab.benchmark import bench_json, find_cases, run_case
    from paperworks.terminal import print_case

    torch.set_num_threads(threads)
    results = []
    for case in find_cases(id):
        result = run_case(case, rounds=rounds)
        results.append(result)
        if not as_json:
            print_case(result)
    if as_json:
        typer.echo(json.dumps({**bench_json(id, results), "threads": threads, "rounds": rounds}, indent=2))


@app.command()
def report(
    paper: Annotated[list[str] | None, typer.Option(help="Only this paper (may be given again).")] = None,
    area: Area = None,
    tier: Annotated[str | None, typer.Option(help="Only verdicts of this tier.")] = None,
    settings: Settings = None,
    form: Annotated[str, typer.Option("--format", help="html, markdown or json.")] = "html",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; - prints.")] = None,
    readme: Annotated[
        bool, typer.Option("--readme", help="Write the table of papers and verdicts into README.md (or --output).")
    ] = False,
    db: Database = None,
    as_json: Json = False,
) -> None:
    """Verdicts with numbers, intervals, seeds, time, machine and versions, as a page, text or data."""
    from paperworks.lab import report as reports
    from paperworks.lab.nouns import check_tier
    from paperworks.lab.settings import parse
    from paperworks.lab.store import open_store

    papers = _chosen(paper, area, everything=True)
    if tier is not None:
        check_tier(tier)
    if as_json:
        form = "json"
    with open_store(db) as store:
        command = None if paper or area or tier or settings else "paperworks report"
        collected = reports.collect(store, papers, tier=tier, settings=parse(settings or []) or None, command=command)
    if readme:
        path = output or Path("README.md")
        path.write_text(reports.update_readme(path.read_text("utf-8"), reports.readme_table(collected)), "utf-8")
        typer.echo(f"table written into {path}")
        return
    if form == "html":
        made, default = reports.render_html(collected), "reports/paperworks.html"
    elif form == "markdown":
        made, default = reports.render_markdown(collected), "reports/paperworks.md"
    elif form == "json":
        made, default = json.dumps(reports.report_json(collected), indent=2) + "\n", "-"
    else:
        raise ValueError(f"--format: got {form!r}, wanted html, markdown or json")
    target = str(output or default)
    if target == "-":
        typer.echo(made, nl=False)
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(made, encoding="utf-8")
    typer.echo(f"report: {target}")


app.add_typer(cli_feed.commands)


def main() -> None:
    """Entry point: an error that the user can mend is one line and exit code 2."""
    try:
        app()
    except (ValueError, ImportError, OSError) as error:
        typer.echo(f"paperworks: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
