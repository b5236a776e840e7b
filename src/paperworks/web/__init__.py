"""The pages over the catalogue and the lab: FastAPI and Jinja2, rendered on the server (extra ``web``)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperworks.web.app import create_app as create_app
    from paperworks.web.settings import Settings as Settings

_HOME = {"Settings": "settings", "create_app": "app"}
"""Module of each public name: imported when it is first used, so that importing the package is light."""

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'paperworks.web' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"paperworks.web.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("fastapi", "starlette", "pydantic", "python_multipart"):
            raise ImportError(f"the pages need {error.name}: pip install 'paperworks[web]'", name=error.name) from error
        raise
    return getattr(module, name)
