"""Records in, records out: the store of trials, verdicts and machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, func, or_, select, tuple_, update

from paperworks.lab.records import Machine, TrialResult, TrialSpec, Verdict, digest
from paperworks.lab.store.database import Database
from paperworks.lab.store.tables import machines, trials, verdicts

CHUNK = 500
"""Keys in one query."""


def open_store(url: str | Path | None = None) -> Store:
    """The store at `url`, created or brought up to date where needed.

    Args:
        url: a path or ``sqlite:///path`` for SQLite, ``postgresql://user@host/database`` for PostgreSQL. Without it
            the environment's PAPERWORKS_DB, else ``paperworks.sqlite`` in the user's data folder.

    Raises:
        ValueError: `url` is not understood.
        StoreError: the database cannot be reached, is no database, or was written by a newer version.
        ImportError: PostgreSQL is asked for and psycopg is not installed.
    """
    return Store(Database(url))


class Store:
    """Trials, verdicts and machines, kept in a database. Made by `open_store`; a context manager that closes it.

    Threads of one process may share a store; every process opens its own. Methods raise StoreError where the database
    fails. A write that has returned survives the death of the process.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    @property
    def location(self) -> str:
        """The file, or the URL without its password."""
        return self._database.location

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the store cannot be used any more."""
        self._database.close()

    # trials

    def trial(self, key: str) -> TrialResult | None:
        """The result kept under `key`, or None."""
        return self.trials([key]).get(key)

    def trials(self, keys: Iterable[str]) -> dict[str, TrialResult]:
        """The results kept under `keys`, in that order; keys without a result are left out."""
        names = [column.name for column in trials.c if column.name != "spec"]
        found = self._select(select(*(trials.c[name] for name in names)), trials.c.key, keys)
        return {key: TrialResult(**row) for key, row in found.items()}

    def specs(self, keys: Iterable[str]) -> dict[str, TrialSpec]:
        """The specifications of the trials kept under `keys`, in that order."""
        found = self._select(select(trials.c.key, trials.c.spec), trials.c.key, keys)
        return {key: TrialSpec(**row["spec"]) for key, row in found.items()}

    def put_trial(self, spec: TrialSpec, result: TrialResult) -> None:
        """Keep the result of a trial.

        One result is kept for a key. A done one takes the place of an error, never the other way round; of two alike
        the one that finished later stays.

        Raises:
            ValueError: the result is not of this trial, its status is unknown, or its time has no time zone.
        """
        if result.key != spec.key:
            raise ValueError(f"result: got the key {result.key!r}, the trial has {spec.key!r}")
        if result.status not in ("done", "error"):
            raise ValueError(f"result.status: got {result.status!r}, wanted 'done' or 'error'")
        values = asdict(result) | {
            "spec": asdict(spec),
            "metrics": {name: float(value) for name, value in result.metrics.items()},
            "curves": {name: [float(value) for value in curve] for name, curve in result.curves.items()},
        }
        insert = self._database.insert(trials).values(values)
        new = insert.excluded
        better = and_(new.status == "done", trials.c.status == "error")
        later = and_(new.status == trials.c.status, new.finished >= trials.c.finished)
        statement = insert.on_conflict_do_update(
            index_elements=[trials.c.key], set_={name: new[name] for name in values}, where=or_(better, later)
        )
        self._database.write(lambda connection: connection.execute(statement))

    # verdicts

    def put_verdict(self, verdict: Verdict) -> bool:
        """Append a verdict, unless it says what the latest answer to the same question says.

        Returns whether it was appended; where not, the latest answer counts as checked at the time of this one.
        """
        question = verdicts.c.question == verdict.question
        latest = select(verdicts.c.number, verdicts.c.content).where(question).order_by(verdicts.c.number.desc())
        values = {
            name: getattr(verdict, name)
            for name in ("question", "content", "paper", "claim", "status", "tier", "device", "control", "created")
        } | {
            "settings_digest": digest(dict(verdict.settings)),
            "data": verdict.to_json(),
            "checked": verdict.created,
        }  # fmt: skip

        def append(connection: Connection) -> bool:
            while True:
                last = connection.execute(latest.limit(1)).first()
                if last is not None and last.content == verdict.content:
                    row = and_(question, verdicts.c.number == last.number, verdicts.c.checked < verdict.created)
                    connection.execute(update(verdicts).where(row).values(checked=verdict.created))
                    return False
                following = 1 if last is None else last.number + 1
                insert = self._database.insert(verdicts).values(values | {"number": following})
                counted = connection.execution_options(preserve_rowcount=True)
                # nothing is inserted where another process took the number meanwhile: then its answer is the latest
                if counted.execute(insert.on_conflict_do_nothing()).rowcount:
                    return True

        return self._database.write(append)

    def latest_verdicts(
        self,
        *,
        paper: str | None = None,
        tier: str | None = None,
        control: bool | None = False,
        settings: Mapping[str, Any] | None = None,
    ) -> list[Verdict]:
        """The newest verdict of each question, by paper, claim, tier and device.

        Args:
            paper: of this paper only.
            tier: at this tier only.
            control: of controls (True), of claims as they stand (False), or both (None).
            settings: with exactly these settings only.
        """
        newest = select(verdicts.c.question, func.max(verdicts.c.number)).group_by(verdicts.c.question)
        newest = _matching(newest, paper=paper, tier=tier, control=control, settings=settings)
        chosen = tuple_(verdicts.c.question, verdicts.c.number).in_(newest)
        with self._database.read() as connection:
            found = [Verdict.from_json(data) for data in connection.scalars(select(verdicts.c.data).where(chosen))]
        return sorted(found, key=lambda v: (v.paper, v.claim, v.tier, v.device, v.control, v.question))

    def history(
        self,
        paper: str,
        claim: str,
        *,
        tier: str | None = None,
        device: str | None = None,
        control: bool | None = False,
        settings: Mapping[str, Any] | None = None,
    ) -> list[Verdict]:
        """Every verdict of a claim in the order it was given, oldest first; the rest as for `latest_verdicts`."""
        query = select(verdicts.c.data).order_by(verdicts.c.created, verdicts.c.question, verdicts.c.number)
        query = _matching(
            query, paper=paper, claim=claim, tier=tier, device=device, control=control, settings=settings
        )  # fmt: skip
        with self._database.read() as connection:
            return [Verdict.from_json(data) for data in connection.scalars(query)]

    def checked(self, questions: Iterable[str]) -> dict[str, datetime]:
        """When the latest answer to each of `questions` was last given, unchanged repetitions included."""
        query = select(verdicts.c.question, verdicts.c.checked).order_by(verdicts.c.number)
        return {key: row["checked"] for key, row in self._select(query, verdicts.c.question, questions).items()}

    # machines

    def put_machine(self, machine: Machine) -> None:
        """Keep a machine; one that is known already stays as it is."""
        insert = self._database.insert(machines).values(id=machine.id, data=asdict(machine))
        self._database.write(lambda connection: connection.execute(insert.on_conflict_do_nothing()))

    def machines(self, ids: Iterable[str] | None = None) -> dict[str, Machine]:
        """The machines of these ids, or all, by id."""
        query = select(machines.c.id, machines.c.data)
        if ids is not None:
            found = self._select(query, machines.c.id, ids)
        else:
            with self._database.read() as connection:
                found = {row["id"]: row for row in connection.execute(query.order_by(machines.c.id)).mappings()}
        return {id: Machine(**row["data"]) for id, row in found.items()}

    def _select(self, query: Select[Any], column: Any, keys: Iterable[str]) -> dict[str, RowMapping]:
        """The rows of `query` whose `column` is one of `keys`, by key in the order asked; of several the last."""
        if isinstance(keys, str):
            raise TypeError(f"keys: got the string {keys!r}, wanted several of them")
        asked = list(dict.fromkeys(keys))
        found: dict[str, RowMapping] = {}
        with self._database.read() as connection:
            for start in range(0, len(asked), CHUNK):
                for row in connection.execute(query.where(column.in_(asked[start : start + CHUNK]))).mappings():
                    found[row[column]] = row
        return {key: found[key] for key in asked if key in found}


def _matching(query: Select[Any], *, settings: Mapping[str, Any] | None, **wanted: Any) -> Select[Any]:
    """`query` with the columns named in `wanted` held to their values; None leaves one free."""
    if settings is not None:
        wanted["settings_digest"] = digest(dict(settings))
    for name, value in wanted.items():
        if value is not None:
            query = query.where(verdicts.c[name] == value)
    return query
