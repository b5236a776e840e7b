"""The three ways to name a model: `package.module:factory`, a local folder, a transformers id."""

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ModelSpec", "parse_spec", "working_directory_importable"]

_FORMS = "want 'package.module:factory', a local folder saved by transformers, or a transformers id"


@dataclass(frozen=True)
class ModelSpec:
    """What a spec names. Exactly one of `module` (with `attribute`), `folder` and `hub_id` is set."""

    text: str
    module: str = ""
    attribute: str = ""
    folder: Path | None = None
    hub_id: str = ""


def parse_spec(spec: str) -> ModelSpec:
    """Tell the three forms of a model spec apart. An existing folder comes first.

    Raises:
        TypeError: `spec` is no string.
        ValueError: it has none of the three forms, or looks like a folder that does not exist.
    """
    if not isinstance(spec, str):
        raise TypeError(f"model: got {type(spec).__name__}, {_FORMS}")
    if spec and Path(spec).expanduser().is_dir():
        return ModelSpec(spec, folder=Path(spec).expanduser().resolve())
    dotted = r"[^\W\d]\w*(?:\.\w+)*"
    if match := re.fullmatch(rf"({dotted}):({dotted})", spec):
        return ModelSpec(spec, module=match[1], attribute=match[2])
    if spec.startswith((".", "/", "~", os.sep)):
        raise ValueError(f"model {spec!r}: no such folder; {_FORMS}")
    if re.fullmatch(r"\w[\w.-]*(?:/\w[\w.-]*)?", spec):
        return ModelSpec(spec, hub_id=spec)
    raise ValueError(f"model: got {spec!r}, {_FORMS}")


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let imports see the working directory, as under `python -m`, for the time of the block."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
