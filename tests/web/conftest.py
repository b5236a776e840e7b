"""Fixtures of this folder."""

from feed.migrated import store_url

__all__ = ["store_url"]
