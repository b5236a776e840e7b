"""What a request needs, made once for the site."""

from __future__ import annotations

import logging
from datetime import datetime

from sqlalchemy import func, select

from paperworks.feed.digest import Digest
from paperworks.feed.ranking import check_aware
from paperworks.feed.search import Search
from paperworks.feed.store import Store
from paperworks.feed.subscriptions import Subscriptions
from paperworks.feed.tables import events
from paperworks.feed.verdicts import Verdicts
from paperworks.lab import registry
from paperworks.web.arenas import arena_table
from paperworks.web.runs import Runs
from paperworks.web.settings import Settings

log = logging.getLogger(__name__)


class Site:
    """The store and what is built over it. Threads may share it.

    Raises what `Store` raises.

    Attributes:
        settings: what the operator decided.
        store: papers, verdicts, readers.
        verdicts: what the lab knows of the claims.
        search: over the papers.
        subscriptions: who gets the digest.
        digest: for its preview.
        runs: those started from the page.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closed = False
        self.store = Store(settings.store)
        if settings.catalogue:
            self.store.add_cards(registry.catalogue())
        self.verdicts = Verdicts(self.store)
        self.search = Search(self.store, embedder=settings.embedder, verdicts=self.verdicts)
        self.subscriptions = Subscriptions(self.store, settings.secret)
        self.digest = Digest(
            self.store,
            self.search,
            self.subscriptions,
            base_url=settings.base_url,
            sender=settings.sender,
            verdicts=self.verdicts,
        )
        self.runs = Runs(self.store.database.url.render_as_string(hide_password=False), self.now)

    def now(self) -> datetime:
        """The time, timezone-aware."""
        found = self.settings.now()
        check_aware("now", found)
        return found

    def generation(self) -> tuple[str, str, int]:
        """Another after each change of the papers, the verdicts, or what readers did."""
        with self.store.database.read() as connection:
            last = connection.scalar(select(func.max(events.c.id)))
        return self.store.generation(), self.verdicts.generation(), int(last or 0)

    def warm(self) -> None:
        """Do beforehand what the first readers would wait for. What goes wrong here, they will be told."""
        try:
            self.search.query("paper", limit=1)
            for paper in self.verdicts.report()["papers"]:
                self.verdicts.figures(paper["id"])
            for area in registry.areas():
                arena_table(self, area)
        except Exception:
            if not self._closed:
                log.exception("could not warm up")

    def close(self) -> None:
        """End the runs and close the store."""
        self._closed = True
        self.runs.close()
        self.store.close()
