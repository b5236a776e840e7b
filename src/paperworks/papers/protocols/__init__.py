"""Protocols that papers share. Light at import: tensor code is imported inside the functions."""
