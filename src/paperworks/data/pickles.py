"""Reading pickles from users without running anything in them.

A pickle is a program that may call any function. `loads` runs it with the names of NumPy's and the built-in byte types
only, each bound to a function of this module, so that nothing comes out but dict, list, tuple, str, bytes, bytearray,
int, float, bool, None and NumPy arrays, dtypes and scalars of plain types. NumPy's own reconstructors are never given
what the file says: with the flags of a pickled dtype a file can make NumPy take raw bytes for object pointers. Pickles
of Python 2 (the CIFAR batches) are read with their `str` as bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paperworks.data.sources import MAX_BYTES, read_file

ALLOWED = "dict, list, tuple, str, bytes, bytearray, int, float, bool, None and NumPy arrays, dtypes and scalars"


_UNREADABLE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError)


class UnsafePickleError(pickle.UnpicklingError, ValueError):
    """The pickle asks for something that is not plain data, or is no whole pickle."""


def loads(data: bytes, *, name: str = "pickle", encoding: str = "bytes") -> Any:
    """The plain data in the pickle `data`, of any protocol.

    Args:
        data: the pickle, whole.
        name: what to call it in errors (its file name).
        encoding: how to read the `str` of Python 2: "bytes" keeps them as bytes, else the name of an encoding.

    Raises:
        UnsafePickleError (a ValueError): it names anything else (the message says what), or cannot be read.
    """
    try:
        _check_instructions(data)
        value = _Unpickler(io.BytesIO(data), encoding=encoding).load()
        return _plain(value, {})
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name}: {error}") from None
    except RecursionError:
        raise UnsafePickleError(f"{name}: found data nested too deep; wanted plain data") from None
    except _UNREADABLE as error:
        raise UnsafePickleError(f"{name}: found no readable pickle ({error}); wanted {ALLOWED}") from error


def load(path: str | Path, *, encoding: str = "bytes", limit: int = MAX_BYTES) -> Any:
    """The plain data in the pickle file `path` (plain or gzip), as `loads` reads it; at most `limit` bytes."""
    return loads(read_file(Path(path), limit=limit), name=str(path), encoding=encoding)


def _check_instructions(data: bytes) -> None:
    """Refuse, before anything runs, what the unpickler itself would not ask us about.

    A memo index makes it allocate every slot up to that index; an extension code may come from a cache of the process.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
            raise UnsafePickleError(f"found memo slot {argument} after {count} instructions; wanted an ordinary pickle")
        if opcode.name.startswith("EXT"):
            raise UnsafePickleError(f"found the extension code {argument}; wanted only {ALLOWED}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Python 2, NumPy 1 and NumPy 2 keep the same thing in different modules.
        place = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        if (place, name) not in _GLOBALS:
            raise UnsafePickleError(f"found {module}.{name}; wanted only {ALLOWED}")
        return _Global(_GLOBALS[place, name])

    def persistent_load(self, identifier: Any) -> Any:
        raise UnsafePickleError(f"found a reference to an outside object ({identifier!r}); wanted only {ALLOWED}")


class _Global:
    """What a name in a pickle is bound to: it can be called, but unlike a function nothing can be set on it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise UnsafePickleError("found a change of a global name; wanted plain data")


class _Dtype:
    """Stands for a dtype while a pickle is read: made from a type code and a byte order, and from nothing else."""

    __hash__ = None  # type: ignore[assignment]  # no key of plain data

    def __init__(self, code: str | bytes, align: object = False, copy: object = False) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][1-9][0-9]{0,5}", text):
            raise UnsafePickleError(f"found the NumPy dtype {text!r}; wanted booleans, numbers or fixed-length strings")
        self.value: np.dtype[Any] = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("found a structured NumPy dtype; wanted booleans, numbers or fixed-length strings")
        if order in "<>":
            self.value = np.dtype(order + self.value.str[1:])


class _Array:
    """Stands for an array or a scalar while a pickle is read; `value` is made from checked parts."""

    __hash__ = None  # type: ignore[assignment]  # no key of plain data

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        """An array of its own over the bytes `raw`: a plain dtype, and as many bytes as the shape says."""
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray) or not isinstance(shape, tuple):
            raise UnsafePickleError(f"found an array over {type(raw).__name__}; wanted bytes of a plain dtype")
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.value.itemsize != len(raw):
            raise UnsafePickleError(f"found {len(raw)} bytes for an array of shape {shape} and dtype {dtype.value}")
        flat = np.frombuffer(raw, dtype.value) if raw else np.empty(0, dtype.value)
        self.value = flat.reshape(shape, order="F" if order in ("F", b"F") else "C").copy(order="K")
        return self


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if not isinstance(kind, _Global) or kind.function is not _ndarray:
        raise UnsafePickleError("found an array of a class of its own; wanted numpy.ndarray")
    return _Array()


def _ndarray(*arguments: object) -> None:
    raise UnsafePickleError("found a call of numpy.ndarray; wanted an array as NumPy pickles it")


def _frombuffer(raw: object, dtype: object, shape: object, order: object) -> _Array:
    return _Array().fill(raw, dtype, shape, order)


def _scalar(dtype: object, raw: object) -> _Array:
    made = _Array().fill(raw, dtype, (), "C")
    made.value = made.value[()]
    return made


def _encode(text: object, codec: object) -> bytes:
    """`_codecs.encode`, with which Python 3 writes bytes in the protocols that have none: Latin-1 only."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"found a call of _codecs.encode for {codec!r}; wanted text in latin1")
    return text.encode("latin1")


def _bytes() -> bytes:
    return b""


def _bytearray(content: object = b"", codec: object = "latin-1") -> bytearray:
    if isinstance(content, str) and codec in ("latin-1", b"latin-1"):
        return bytearray(content.encode("latin1"))
    if not isinstance(content, bytes):
        raise UnsafePickleError(f"found a call of bytearray with {type(content).__name__}; wanted bytes")
    return bytearray(content)


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
}


def _plain(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with stand-ins replaced by what they stand for; shared lists and dicts stay shared, and may be cyclic.

    `seen` holds what was met, by identity, with its replacement (and keeps it alive, so that no identity comes twice).
    """
    kind = type(value)
    if kind in (str, bytes, bytearray, int, float, bool, type(None)):
        return value
    if id(value) in seen:
        made = seen[id(value)][1]
        if made is None:
            raise UnsafePickleError("found a tuple that holds itself; wanted plain data")
        return made
    if kind is list:
        seen[id(value)] = (value, value)
        value[:] = [_plain(item, seen) for item in value]
        return value
    if kind is dict:
        seen[id(value)] = (value, value)
        for key, item in value.items():
            _plain(key, seen)  # only to refuse; stand-ins have no hash, so a key holds none
            value[key] = _plain(item, seen)
        return value
    if kind is tuple:
        seen[id(value)] = (value, None)
        items = [_plain(item, seen) for item in value]
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        made = tuple(items) if changed else value
    elif kind in (_Dtype, _Array) and value.value is not None:
        made = value.value
    else:
        found = "a function" if kind is _Global else f"a value of type {kind.__name__.lstrip('_')}"
        raise UnsafePickleError(f"found {found}; wanted only {ALLOWED}")
    seen[id(value)] = (value, made)
    return made
