from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch


def _string(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def _integer(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def _array(value: np.ndarray) -> bytes:
    reconstruct = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _integer(0) + b"\x85" + _string(b"b") + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + _string(value.dtype.str[1:].encode()) + _integer(0) + _integer(1) + b"\x87R"
    order = _string(value.dtype.str[:1].encode())
    dtype += b"(" + _integer(3) + order + b"NNN" + _integer(-1) + _integer(-1) + _integer(0) + b"tb"
    shape = b"(" + b"".join(_integer(n) for n in value.shape) + b"t"
    return reconstruct + b"(" + _integer(1) + shape + dtype + b"\x89" + _string(value.tobytes()) + b"tb"


def _value(value: object) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_value(k) + _value(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_value(v) for v in value) + b"e"
    if isinstance(value, np.ndarray):
        return _array(value)
    return _string(value) if isinstance(value, bytes) else _integer(int(value))  # type: ignore[call-overload]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """These tensors are tiny: waking other threads costs more than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def python2_pickle() -> Callable[[object], bytes]:
    """Writes a pickle as Python 2 with NumPy 1 did (protocol 2): the form of the published CIFAR batches."""
    return lambda value: b"\x80\x02" + _value(value) + b"."
