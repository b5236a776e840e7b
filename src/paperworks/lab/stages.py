"""Work that several arms of one seed begin with (a pretrained network), done once and kept in the user's cache.

A stage is a dict of tensors in a safetensors file named by the digest of everything it depends on. A process that
wants a stage which another one is making waits for it; the lock of a process that was killed is free again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from paperworks.lab.records import digest

Tensors = Mapping[str, Any]


def stage_folder() -> Path:
    """Where stages are kept; made if missing. Safe to delete at any time."""
    folder = Path(platformdirs.user_cache_dir("paperworks")) / "stages"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(identity: Mapping[str, Any], make: Callable[[], Tensors]) -> dict[str, Any]:
    """The tensors of the stage of that identity (anything JSON can say), made by `make` if they are not there yet.

    The tensors come back on the CPU, contiguous, each with a storage of its own, whether they were made now or read.
    Raises what `make` raises; TypeError if it returns something else than a dict of tensors.
    """
    from safetensors.torch import load, save

    path = stage_folder() / f"{digest(identity)}.safetensors"
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            made = make()
            if not isinstance(made, Mapping):
                raise TypeError(f"stage: got {type(made).__name__}, wanted a dict of tensors")
            content = save({name: t.detach().cpu().clone().contiguous() for name, t in made.items()})
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
        return dict(load(path.read_bytes()))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file of a stage; where the system has no such locks, two processes may do the same work."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
