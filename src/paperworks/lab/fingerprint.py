"""Which source a trial executes: a digest of the modules that its target and its arm import, found without running.

The imports are followed statically (also those inside functions) through `paperworks` and through the user's own
modules; installed packages are not followed. A module counts without its comments and docstrings, together with the
C sources beside it that it names. In `paperworks.papers` only the named function and what it
refers to count, so that editing a card, or another claim, re-runs nothing. `paperworks.lab` counts as `LAB_VERSION`,
which is raised when a change of the lab changes numbers.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LAB_VERSION = 1
SLICED = "paperworks.papers"
SKIPPED = ("paperworks.lab", "paperworks.cli")
_INSTALLED = tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")})


@lru_cache(maxsize=4096)
def _source_path(module: str) -> Path | None:
    """Path of the source of a module that is followed, else None (built in, installed, missing, or the lab)."""
    if any(module == name or module.startswith(name + ".") for name in SKIPPED):
        return None
    if module.partition(".")[0] in sys.stdlib_module_names:
        return None
    top = module.partition(".")[0]
    if top not in (module, "paperworks") and _source_path(top) is None:
        return None  # of an installed package: finding a submodule would import the package
    try:
        spec = find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).resolve()
    own = module.partition(".")[0] == "paperworks"
    return path if own or not str(path).startswith(_INSTALLED) else None


@lru_cache(maxsize=1024)
def _parsed(path: Path, modified: int) -> ast.Module:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
            and isinstance(node.body[0].value.value, str)
        ):
            node.body = node.body[1:]
    return tree


def _imports(nodes: list[ast.stmt], module: str, is_package: bool) -> set[str]:
    """Names of the modules that `nodes` may import; submodules named in ``from package import name`` included."""
    found = set()
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                found |= {alias.name for alias in inner.names}
            elif isinstance(inner, ast.ImportFrom):
                base = inner.module or ""
                if inner.level:
                    parts = module.split(".")[: len(module.split(".")) - inner.level + is_package]
                    base = ".".join([*parts, base] if base else parts)
                found |= {base, *(f"{base}.{alias.name}" for alias in inner.names)}
    return found


def _kernels(nodes: list[ast.stmt]) -> list[str]:
    """Names of the C sources beside the module that `nodes` may name, as in ``Path(__file__).with_name("ash.c")``."""
    inner = (constant for node in nodes for constant in ast.walk(node) if isinstance(constant, ast.Constant))
    names = {c.value for c in inner if isinstance(c.value, str) and c.value.endswith(".c") and "/" not in c.value}
    return sorted(names)


def _bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _slice(tree: ast.Module, attribute: str) -> list[ast.stmt]:
    """The statements of a module that `attribute` refers to, directly or not; decorators are left out."""
    bound: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _bound_names(node):
            bound.setdefault(name, []).append(node)
    wanted, kept = [attribute.partition(".")[0]], []
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in bound.get(name, []):
            if isinstance(node, ast.FunctionDef):
                bare = ast.FunctionDef(**{**dict(ast.iter_fields(node)), "decorator_list": []})
                node = ast.copy_location(bare, node)
            kept.append(node)
            wanted += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    return sorted(kept, key=lambda node: node.lineno)


def _with_parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


@dataclass(frozen=True)
class _Code:
    """A module, or a part of it: the hash of its statements, the C sources they name, the modules they may import."""

    digest: Any
    kernels: list[str]
    imports: set[str]


@lru_cache(maxsize=4096)
def _code(path: Path, modified: int, module: str, attribute: str = "") -> _Code:
    """The whole module, or with `attribute` what that refers to."""
    tree = _parsed(path, modified)
    nodes = _slice(tree, attribute) if attribute else tree.body
    imported = _imports(nodes, module, path.name == "__init__.py")
    return _Code(
        hashlib.sha256("\n".join(ast.dump(node) for node in nodes).encode()),
        _kernels(nodes),
        set().union(*(_with_parents(name) for name in imported)),
    )


def sources(*targets: str) -> dict[str, str]:
    """Digest by module name of the source that `targets` (``package.module:attribute``) execute."""
    digests: dict[str, str] = {}
    waiting: set[str] = set()

    def note(label: str, code: _Code, path: Path) -> None:
        digest = code.digest.copy()
        for kernel in map(path.with_name, code.kernels):
            if kernel.is_file():
                digest.update(kernel.read_bytes())
        digests[label] = digest.hexdigest()
        waiting.update(code.imports)

    for target in targets:
        module, _, attribute = target.partition(":")
        if path := _source_path(module):
            if module.startswith(SLICED + "."):
                note(target, _code(path, path.stat().st_mtime_ns, module, attribute), path)
            else:
                waiting |= _with_parents(module)
    while waiting:
        module = waiting.pop()
        if module not in digests and (path := _source_path(module)):
            note(module, _code(path, path.stat().st_mtime_ns, module), path)
    return digests


def package_version(name: str) -> str:
    """Version of an installed package, or an empty string."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def fingerprint(*targets: str, extra: tuple[str, ...] = ()) -> str:
    """Digest of the source of `targets`, the lab's and PyTorch's versions and `extra` signatures (24 hex digits)."""
    parts = [f"lab {LAB_VERSION}", f"torch {package_version('torch')}", *extra]
    parts += [f"{module} {digest}" for module, digest in sorted(sources(*targets).items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
