"""Reaching into other people's models: find parts by structure, replace them, record from them."""
