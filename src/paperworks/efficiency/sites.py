"""Activation sites for methods that act at them; the code is in `paperworks.surgery.sites`."""

from paperworks.surgery.sites import ActivationSite, activation_sites, features, freeze, replace_site, restore

__all__ = ["ActivationSite", "activation_sites", "features", "freeze", "replace_site", "restore"]
