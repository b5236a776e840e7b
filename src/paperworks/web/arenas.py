"""An area's arena as a table, from the trials that the store has; made once until there are others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from sqlalchemy import func, select

from paperworks.feed.store import Store
from paperworks.lab.arena import Arena, Row, find_arena, stored_arena
from paperworks.lab.report.wording import headline
from paperworks.lab.store.tables import trials
from paperworks.web.entries import Site
from paperworks.web.models import ArenaRow, ArenaTable

TIERS = ("desk", "smoke")
"""The first that has trials is shown."""

_KEPT: WeakKeyDictionary[Store, dict[str, tuple[str, ArenaTable]]] = WeakKeyDictionary()
_ALONE = threading.Lock()


def arena_table(site: Site, area: str) -> ArenaTable | None:
    """The arena of an area, None where it has none. The first call reads the source of every arm: it takes seconds."""
    try:
        arena = find_arena(area)
    except ValueError:
        return None
    with _ALONE:
        kept = _KEPT.setdefault(site.store, {})
        with site.store.database.read() as connection:
            known = connection.scalar(select(func.count()).select_from(trials))
        generation = f"{site.verdicts.generation()}-{known}"
        if area not in kept or kept[area][0] != generation:
            kept[area] = (generation, _table(arena, site.store))
        return kept[area][1]


def _table(arena: Arena, store: Store) -> ArenaTable:
    tier, rows = TIERS[0], []
    for measured in _measured(arena, store):
        if rows := stored_arena(arena, store.lab, tier=measured):
            tier = measured
            break
    return ArenaTable(
        protocol=arena.protocol.name,
        metric=arena.metric,
        meaning=arena.protocol.metrics[arena.metric],
        higher_is_better=arena.higher_is_better,
        reference=arena.arms[0].name,
        tier=tier,
        command=f"paperworks arena {arena.area}" + ("" if tier == "desk" else f" --tier {tier}"),
        rows=_rows(rows),
    )


def _measured(arena: Arena, store: Store) -> list[str]:
    """The tiers at which an arm was run, with whatever version of the code: to know the version takes seconds."""
    postgres = store.database.engine.name == "postgresql"
    told = [
        func.jsonb_extract_path_text(trials.c.spec, name) if postgres else func.json_extract(trials.c.spec, f"$.{name}")
        for name in ("target", "arm_target", "tier")
    ]
    with store.database.read() as connection:
        known = {tuple(row) for row in connection.execute(select(*told).distinct())}
    arms = {arm.target for arm in arena.arms}
    tiers = {tier for target, arm, tier in known if target == arena.protocol.target and arm in arms}
    return [tier for tier in TIERS if tier in tiers]


def _rows(rows: Sequence[Row]) -> list[ArenaRow]:
    return [
        ArenaRow(
            arm=row.arm,
            mean=row.mean.mean if row.mean else None,
            low=row.mean.low if row.mean else None,
            high=row.mean.high if row.mean else None,
            difference=row.difference.mean if row.difference else None,
            difference_low=row.difference.low if row.difference else None,
            difference_high=row.difference.high if row.difference else None,
            seeds=len(row.values),
            error=headline(row.error),
        )
        for row in rows
    ]
