"""Where data comes from: the spec `scheme:PATH?option=value&...`, and reading what it names within bounds.

A spec is what a user gives on a command line (`--set data=idx:~/mnist`). This module knows the schemes, turns a spec
into a `Source`, walks folders and reads files without following links out of the folder, without reading devices, and
without inflating a compressed file past a limit.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 2 * 2**30
"""No file is read, or inflated, past this many bytes."""
CONTENT_BYTES = 16 * 2**20
"""`data_signature` hashes the contents of data up to this many bytes in all; above it, sizes and modification times."""


@dataclass(frozen=True)
class Scheme:
    """One kind of source: what it gives ("images" or "text"), how its spec is written, and the options it takes."""

    kind: str
    form: str
    options: tuple[str, ...] = ()

    @property
    def takes_path(self) -> bool:
        return ":" in self.form


SCHEMES: Mapping[str, Scheme] = {
    "digits": Scheme("images", "digits", ("size", "mode")),
    "imagefolder": Scheme("images", "imagefolder:PATH", ("size", "mode", "limit", "links")),
    "npz": Scheme("images", "npz:PATH", ("size", "mode", "layout", "scale")),
    "idx": Scheme("images", "idx:PATH", ("size", "mode")),
    "cifar": Scheme("images", "cifar:PATH", ("size", "mode", "labels")),
    "docstrings": Scheme("text", "docstrings"),
    "topics": Scheme("text", "topics"),
    "text": Scheme("text", "text:PATH", ("links",)),
}


class DataNotFoundError(FileNotFoundError, ValueError):
    """A spec names a file or folder that is not there, or a part of the data that this machine does not have."""


@dataclass(frozen=True)
class Source:
    """A parsed spec. `path` is absolute, exists, and is None for the schemes that come without one."""

    spec: str
    scheme: str
    path: Path | None
    options: Mapping[str, str]

    @property
    def location(self) -> Path:
        """The path, for the readers whose scheme always has one."""
        if self.path is None:
            raise self.error("a spec without a path", SCHEMES[self.scheme].form)
        return self.path

    def error(self, found: str, wanted: str) -> ValueError:
        """The error every reader raises: the spec, what was found, what was wanted."""
        return ValueError(f"{self.spec!r}: found {found}; wanted {wanted}")

    def read(self, path: Path, *, limit: int | None = None) -> bytes:
        """`read_file` with the spec in its errors."""
        try:
            return read_file(path, limit=MAX_BYTES if limit is None else limit)
        except ValueError as error:
            raise ValueError(f"{self.spec!r}: {error}") from error

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """The option `name` as one of `allowed`, None if it is not given."""
        value = self.options.get(name)
        if value is not None and value not in allowed:
            raise self.error(f"{name}={value}", f"{name}={'|'.join(allowed)}")
        return value

    def integer(self, name: str) -> int | None:
        """The option `name` as a positive integer, None if it is not given."""
        value = self.options.get(name)
        if value is None:
            return None
        if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
            raise self.error(f"{name}={value}", f"{name}= a positive integer")
        return int(value)

    def number(self, name: str) -> float | None:
        """The option `name` as a positive finite number, None if it is not given."""
        value = self.options.get(name)
        if value is None:
            return None
        try:
            made = float(value)
        except ValueError:
            made = 0.0
        if not 0 < made < float("inf"):
            raise self.error(f"{name}={value}", f"{name}= a positive number")
        return made

    def size(self) -> tuple[int, int] | None:
        """The option `size` as (height, width): `size=32` is a square, `size=32x48` is height x width."""
        value = self.options.get("size")
        if value is None:
            return None
        match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", value)
        if match is None:
            raise self.error(f"size={value}", "size=32 or size=32x48 (height x width)")
        return int(match[1]), int(match[2] or match[1])


def known_schemes(kind: str | None = None) -> str:
    """The specs that are understood, for messages."""
    return ", ".join(s.form for s in SCHEMES.values() if kind in (None, s.kind))


def parse_source(spec: str, kind: str | None = None) -> Source:
    """The parts of `spec`, checked: scheme, existing path, options.

    Args:
        spec: `digits`, `scheme:PATH` or either with `?option=value&option=value`. A `~` in the path is expanded. A `?`
            that is not followed by such a list belongs to the path.
        kind: "images" or "text" to accept only those schemes, None for any.

    Raises:
        TypeError: `spec` is not a string.
        ValueError: unknown scheme (the known ones are listed), unknown or repeated option, a path missing or unasked.
        DataNotFoundError: the path does not exist (it is a ValueError and a FileNotFoundError).
    """
    if not isinstance(spec, str):
        raise TypeError(f"spec: got {type(spec).__name__}, wanted a string such as {known_schemes(kind)}")
    match = re.fullmatch(r"(?P<head>.*?)(?:\?(?P<tail>\w+=[^&?=]*(?:&\w+=[^&?=]*)*))?", spec, re.DOTALL)
    assert match is not None  # the pattern matches every string
    name, colon, path_text = match["head"].partition(":")
    scheme = SCHEMES.get(name)
    if scheme is None or kind not in (None, scheme.kind):
        raise ValueError(f"{spec!r}: found the scheme {name!r}; wanted one of {known_schemes(kind)}")
    if scheme.takes_path != bool(path_text) or (colon and not scheme.takes_path):
        raise ValueError(f"{spec!r}: found {'no path' if scheme.takes_path else 'a path'}; wanted {scheme.form}")
    options: dict[str, str] = {}
    for pair in filter(None, (match["tail"] or "").split("&")):
        key, _, value = pair.partition("=")
        if key not in scheme.options or key in options:
            found = f"the option {key!r}" + (" twice" if key in options else "")
            wanted = ", ".join(scheme.options) or "no option"
            raise ValueError(f"{spec!r}: found {found}; {name} takes {wanted}")
        options[key] = value
    if not scheme.takes_path:
        return Source(spec, name, None, options)
    path = Path(os.path.abspath(Path(path_text).expanduser()))
    if not path.exists():
        raise DataNotFoundError(f"{spec!r}: found nothing at {path}; wanted {scheme.form} with an existing path")
    return Source(spec, name, path, options)


def walk_files(root: Path, *, follow_links: bool = False) -> tuple[list[Path], list[str]]:
    """The regular files under the folder `root`, sorted by name, and the names left out, with the reason.

    Hidden files and folders (and the `__MACOSX` of archives) do not count as data. A link is followed where it stays
    inside `root`; one that leads out is left out unless `follow_links`, so that a folder from elsewhere cannot pull in
    files of this machine. A link back to a folder on the way to it is never followed.
    """
    top = root.resolve()
    files: list[Path] = []
    left_out: list[str] = []

    def visit(folder: Path, above: frozenset[Path]) -> None:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name == "__MACOSX":
                continue
            name = path.relative_to(root).as_posix()
            real = Path(os.path.realpath(path)) if path.is_symlink() else path
            if path.is_symlink() and not follow_links and not real.is_relative_to(top):
                left_out.append(f"{name} (link out of the folder)")
            elif real.is_dir():
                if real.resolve() in above:
                    left_out.append(f"{name} (link to a folder that holds it)")
                else:
                    visit(path, above | {real.resolve()})
            elif real.is_file():
                files.append(path)
            else:
                left_out.append(f"{name} ({'broken link' if path.is_symlink() else 'not a regular file'})")

    visit(root, frozenset([top]))
    return files, left_out


def read_file(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file, inflated where it is gzip by its first two bytes; never more than `limit`.

    Raises ValueError naming the file for anything but a regular file, a file above the limit, or broken gzip data.
    """
    if not path.is_file():
        raise ValueError(f"{path}: found {'nothing' if not path.exists() else 'no regular file'}; wanted a file")
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            content = gzip.GzipFile(fileobj=stream).read(limit + 1) if packed else stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: found data that cannot be read ({error}); wanted a whole file") from error
    if len(content) > limit:
        found = f"more than {limit:,} bytes" + (" once inflated" if packed else "")
        raise ValueError(f"{path}: found {found}; wanted at most that")
    return content


def data_signature(spec: str) -> str:
    """A digest that changes when the data that `spec` names changes, for keys of caches.

    For files: the options, the names below the path, the sizes, and the contents (above `CONTENT_BYTES` in all: the
    modification times instead). It does not depend on where the folder lies. For data that comes with software: its
    name and that software's version. Raises what `parse_source` raises.
    """
    source = parse_source(spec)
    digest = hashlib.sha256()

    def note(*parts: object) -> None:
        for part in parts:
            text = str(part).encode("utf-8", "surrogateescape")
            digest.update(len(text).to_bytes(8, "little") + text)

    note(source.scheme, *(f"{key}={value}" for key, value in sorted(source.options.items())))
    if source.path is None:
        note(_version(source.scheme))
        return f"{source.scheme}-{digest.hexdigest()[:32]}"
    if source.path.is_dir():
        files, _ = walk_files(source.path, follow_links=source.options.get("links") == "follow")
        names = [path.relative_to(source.path).as_posix() for path in files]
    else:
        # the labels of an IDX file lie beside it
        files = sorted(source.path.parent.glob("*-ubyte*")) if source.scheme == "idx" else [source.path]
        names = [path.name for path in files]
    stats = [path.stat() for path in files]
    whole = sum(stat.st_size for stat in stats) <= CONTENT_BYTES
    for path, name, stat in zip(files, names, stats, strict=True):
        note(name, stat.st_size, hashlib.sha256(path.read_bytes()).hexdigest() if whole else stat.st_mtime_ns)
    return f"{source.scheme}-{digest.hexdigest()[:32]}"


def _version(scheme: str) -> str:
    if scheme == "digits":
        import sklearn

        return f"scikit-learn {sklearn.__version__}"
    return f"Python {platform.python_version()}"
