"""A digest of the code or files behind a model spec, for keys of caches."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from paperworks.surgery.model_spec import ModelSpec, parse_spec, working_directory_importable

__all__ = ["model_signature"]


def model_signature(spec: str) -> str:
    """A digest that changes when what `load_model(spec, ...)` would build changes.

    For `package.module:factory`: the sources of that module and of all it imports, directly or not, outside the
    standard library and installed packages; for a factory in an installed package its module's source and the
    package's version. For a folder: names and contents of its files, hidden ones left out. For a transformers id:
    the commit of its cached files (fetched if there are none).

    Returns:
        32 hexadecimal digits.

    Raises:
        TypeError, ValueError: as `load_model` for a spec that names nothing, or a module without a source file.
        ImportError: a transformers id, without transformers.
        OSError: a transformers id that is neither cached nor can be fetched.
    """
    parsed = parse_spec(spec)
    digest = hashlib.sha256(spec.encode())
    if parsed.folder is not None:
        _add_folder(digest, parsed.folder)
    elif parsed.module:
        with working_directory_importable():
            _add_sources(digest, parsed)
    else:
        digest.update(_commit(parsed).encode())
    return digest.hexdigest()[:32]


def _add(digest: "hashlib._Hash", name: str, path: Path) -> None:
    with path.open("rb") as file:
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        while chunk := file.read(1 << 20):
            digest.update(chunk)


def _add_folder(digest: "hashlib._Hash", folder: Path) -> None:
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names):
        if not any(part.startswith(".") for part in name.parts):
            _add(digest, name.as_posix(), folder / name)


def _commit(spec: ModelSpec) -> str:
    try:
        from transformers.utils.hub import cached_file, extract_commit_hash
    except ImportError as error:
        raise ImportError(f"model {spec.text!r}: pip install 'paperworks[activations]' ({error})") from error
    try:
        path = cached_file(spec.hub_id, "config.json")
    except OSError as error:
        raise OSError(f"model {spec.text!r}: no folder of that name, and no transformers id: {error}") from error
    return str(extract_commit_hash(str(path), None))


# --- sources ---


def _add_sources(digest: "hashlib._Hash", spec: ModelSpec) -> None:
    root = _source(spec.module)
    if root is None:
        raise ValueError(f"model {spec.text!r}: no module {spec.module!r} with a Python source file")
    if _is_installed(root):
        _add(digest, spec.module, root)
        top = spec.module.partition(".")[0]
        for distribution in sorted(importlib.metadata.packages_distributions().get(top, [])):
            digest.update(f"{distribution} {importlib.metadata.version(distribution)}\0".encode())
        return
    found: dict[str, Path] = {}
    waiting = [spec.module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in found or path is None or _is_installed(path):
            continue
        found[name] = path
        waiting += _imports(name, path)
    for name in sorted(found):
        _add(digest, name, found[name])


def _source(module: str) -> Path | None:
    """The source file of a module. Parents are imported to find it, except those of installed packages' modules."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is None:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, AttributeError, ValueError):  # no such module; a parent that is no package; no spec
            return None
        loaded = found.origin if found is not None and found.has_location else None
    path = None if loaded is None else Path(loaded).resolve()
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _is_installed(path: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib"))


def _imports(module: str, path: Path) -> Iterator[str]:
    """Names of the modules, outside installed packages, that a source file may import, with their packages."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    if package:
        names.add(package)
    for name in sorted(names):
        parts = name.split(".")
        top = _top_level(parts[0])
        if top:
            yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _top_level(name: str) -> bool:
    """Whether a top-level package is the user's own: neither built in nor installed. Does not import it."""
    if not name or name in sys.stdlib_module_names:
        return False
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if found is None:
        return False
    places = [found.origin] if found.has_location and found.origin else list(found.submodule_search_locations or [])
    return not any(_is_installed(Path(place).resolve()) for place in places)
