"""Fixtures that tests of several areas use."""

from browser import browser
from hypothesis import settings
from postgres import postgres_server, postgres_url, store_url

__all__ = ["browser", "postgres_server", "postgres_url", "store_url"]

# The machine is shared by several workers: a slow example is no failure.
settings.register_profile("paperworks", deadline=None, max_examples=50)
settings.load_profile("paperworks")
