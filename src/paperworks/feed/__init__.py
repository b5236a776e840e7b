"""The catalogue of papers: ingest, search, trending, subscriptions and digest."""
