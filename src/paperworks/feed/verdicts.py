"""What the lab's store knows of each card's claims, kept in memory until a verdict is added."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from paperworks.feed.ranking import check_aware
from paperworks.feed.store import Store
from paperworks.lab import registry
from paperworks.lab.nouns import Paper
from paperworks.lab.report import collect, report_json
from paperworks.lab.report.figures import Drawn, draw_all
from paperworks.lab.store.tables import verdicts

__all__ = ["Flip", "Verdicts"]


@dataclass(frozen=True)
class Flip:
    """A claim whose verdict is another than the one before it, under the same tier and device."""

    card: str
    claim: str
    sentence: str
    before: str
    after: str
    tier: str
    at: datetime


class Verdicts:
    """The report on every carried paper, read again when the store has new verdicts. Threads may share it."""

    def __init__(self, store: Store, cards: Iterable[Paper] | None = None) -> None:
        self.store = store
        self.cards = {card.id: card for card in (registry.papers() if cards is None else cards)}
        self._lock = threading.Lock()
        self._read: tuple[str, Any, dict[str, Any]] | None = None
        self._drawn: dict[str, tuple[str, list[Drawn]]] = {}

    def generation(self) -> str:
        """A text that is another after each verdict that is stored."""
        with self.store.database.read() as connection:
            number, checked = connection.execute(select(func.count(), func.max(verdicts.c.checked))).one()
        return f"{number}-{'' if checked is None else checked.isoformat()}"

    def _current(self) -> tuple[str, Any, dict[str, Any]]:
        generation = self.generation()
        with self._lock:
            if self._read is None or self._read[0] != generation:
                report = collect(self.store.lab, self.cards.values())
                self._read = (generation, report, report_json(report))
            return self._read

    def report(self) -> dict[str, Any]:
        """The data of `paperworks.lab.report.report_json` on every card."""
        return self._current()[2]

    def paper(self, card: str) -> dict[str, Any] | None:
        """What the report says of one card; None for a paper that is not carried."""
        return next((dict(paper) for paper in self.report()["papers"] if paper["id"] == card), None)

    def counts(self, card: str | None) -> Mapping[str, int] | None:
        """How many of a card's claims have each status; None for a paper that is not carried."""
        found = self.paper(card) if card is not None else None
        return None if found is None else found["counts"]

    def figures(self, card: str) -> list[Drawn]:
        """The card's figures, as ``paper.html.j2`` wants them; drawn once a generation."""
        generation = self._current()[0]
        kept = self._drawn.get(card)
        if kept is None or kept[0] != generation:
            one = collect(self.store.lab, [self.cards[card]])
            kept = self._drawn[card] = (generation, draw_all(one)[card])
        return kept[1]

    def flips(self, since: datetime, until: datetime) -> list[Flip]:
        """The verdicts given after `since`, up to `until`, that changed what was known, the newest first."""
        for name, when in (("since", since), ("until", until)):
            check_aware(name, when)
        report = self._current()[1]
        found = []
        for (card, claim), told in report.history.items():
            last: dict[str, str] = {}
            for verdict in reversed(told):
                before = last.get(verdict.question)
                if before is not None and before != verdict.status and since < verdict.created <= until:
                    sentence = self.cards[card].claim(claim).sentence
                    found.append(Flip(card, claim, sentence, before, verdict.status, verdict.tier, verdict.created))
                last[verdict.question] = verdict.status
        return sorted(found, key=lambda flip: (flip.at, flip.card, flip.claim), reverse=True)
