"""Shifted-window transformers: one window attention for any number of axes, and the papers that build on it."""
