"""Find papers by their cards, without importing their methods."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

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


def areas() -> list[str]:
    """Names of the areas that have a paper."""
    return sorted({paper.area for paper in papers()})
