"""The catalogue of papers: ingest, search, trending, subscriptions and digest."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperworks.feed import ranking as ranking
    from paperworks.feed.arxiv import parse_arxiv_atom as parse_arxiv_atom
    from paperworks.feed.arxiv import parse_oai as parse_oai
    from paperworks.feed.clients import ArxivClient as ArxivClient
    from paperworks.feed.clients import DailyPapersClient as DailyPapersClient
    from paperworks.feed.clients import SourceError as SourceError
    from paperworks.feed.daily import parse_daily_papers as parse_daily_papers
    from paperworks.feed.daily import parse_paper as parse_paper
    from paperworks.feed.digest import Digest as Digest
    from paperworks.feed.merging import AddReport as AddReport
    from paperworks.feed.page import parse_page as parse_page
    from paperworks.feed.records import PaperRecord as PaperRecord
    from paperworks.feed.search import Search as Search
    from paperworks.feed.store import Store as Store
    from paperworks.feed.subscriptions import Subscriptions as Subscriptions
    from paperworks.feed.syndication import atom as atom
    from paperworks.feed.syndication import json_feed as json_feed
    from paperworks.feed.syndication import rss as rss
    from paperworks.feed.trends import trending as trending

_HOME = {
    "AddReport": "merging",
    "ArxivClient": "clients",
    "DailyPapersClient": "clients",
    "Digest": "digest",
    "PaperRecord": "records",
    "Search": "search",
    "SourceError": "clients",
    "Store": "store",
    "Subscriptions": "subscriptions",
    "atom": "syndication",
    "json_feed": "syndication",
    "parse_arxiv_atom": "arxiv",
    "parse_daily_papers": "daily",
    "parse_oai": "arxiv",
    "parse_page": "page",
    "parse_paper": "daily",
    "rss": "syndication",
    "trending": "trends",
}
"""Module of each public name: imported when it is first used, so that importing the package is light."""

__all__ = [*_HOME, "ranking"]


def __getattr__(name: str) -> Any:
    if name == "ranking":
        return importlib.import_module("paperworks.feed.ranking")
    if name in _HOME:
        return getattr(importlib.import_module(f"paperworks.feed.{_HOME[name]}"), name)
    raise AttributeError(f"module 'paperworks.feed' has no attribute {name!r}")
