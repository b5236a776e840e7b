"""Replace the activations of a model: the entry point of `paperworks.surgery.activations` beside the activations."""

from paperworks.surgery.activations import ReplacementReport, replace_activations

__all__ = ["ReplacementReport", "replace_activations"]
