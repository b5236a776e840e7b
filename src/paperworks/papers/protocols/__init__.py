"""Protocols that several papers share. The modules are light at import: tensor code is imported inside the functions."""
