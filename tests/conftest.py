"""Fixtures that tests of several areas use."""

from postgres import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]
