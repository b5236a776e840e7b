"""Find papers by their cards, without importing their methods."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files

from paperworks.lab.nouns import Paper

PACKAGE = "paperworks.papers"


def papers(area: str | None = None) -> Iterator[Paper]:
    """All cards, or those of one area, by id."""
    package = importlib.import_module(PACKAGE)
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if not info.ispkg:
            paper: Paper = importlib.import_module(f"{PACKAGE}.{info.name}").paper
            if area in (None, paper.area):
                yield paper


def find(id: str) -> Paper:
    """The card of that id. Raises ValueError that lists the ids that exist."""
    package = importlib.import_module(PACKAGE)
    name = id.replace("-", "_")
    if name.isidentifier() and any(i.name == name and not i.ispkg for i in pkgutil.iter_modules(package.__path__)):
        paper: Paper = importlib.import_module(f"{PACKAGE}.{name}").paper
        return paper
    raise ValueError(f"paper: got {id!r}, wanted one of {', '.join(p.id for p in papers())}")


@lru_cache(maxsize=1)
def announced() -> tuple[Paper, ...]:
    """The cards of the papers that are not carried yet: facts, keywords and a summary, by id."""
    listed = tomllib.loads(files(PACKAGE).joinpath("announced.toml").read_text(encoding="utf-8"))["paper"]
    cards = [Paper(**{**facts, "keywords": tuple(facts["keywords"]), "method": "", "usage": ""}) for facts in listed]
    return tuple(sorted(cards, key=lambda card: card.id))


def catalogue() -> list[Paper]:
    """Every card, of the papers that are carried and of those that are announced, by id."""
    return sorted([*papers(), *announced()], key=lambda card: card.id)


def areas() -> list[str]:
    """Names of the areas that have a paper."""
    return sorted({paper.area for paper in papers()})
