from __future__ import annotations

import collections
import contextlib
import datetime
import gzip
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paperworks.data import pickles
from paperworks.data.pickles import UnsafePickleError, loads

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.binary() | st.integers(), inner) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)
ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["u1", "i8", ">i2", "<f4", "f8", "f2", "?", "c8", "U3", "S2"]),
    shape=hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4),
)


class Calls:
    """What an attacker's object looks like: unpickling it calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_data_comes_back_equal_from_every_protocol(value: Any, protocol: int) -> None:
    assert loads(pickle.dumps(value, protocol)) == value


@settings(max_examples=80, deadline=None)
@given(ARRAYS, st.integers(0, 5), st.booleans())
def test_arrays_come_back_with_dtype_shape_and_values(array: np.ndarray, protocol: int, fortran: bool) -> None:
    array = np.asfortranarray(array) if fortran else array[..., ::-1] if array.ndim else array
    back = loads(pickle.dumps([array], protocol))[0]
    assert type(back) is np.ndarray
    assert back.dtype == array.dtype
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("value", [np.float32(1.5), np.int64(-3), np.bool_(True), np.dtype(">i4"), np.str_("ab")])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_numpy_scalars_and_dtypes(value: Any, protocol: int) -> None:
    back = loads(pickle.dumps((value, [value]), protocol))
    assert back[0] == value
    assert type(back[0]) is type(value)
    assert back[1][0] == value


def test_python_2_text_is_bytes(python2_pickle: Callable[[object], bytes]) -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(2, 6)
    back = loads(python2_pickle({b"data": rows, b"labels": [3, 300], b"batch_label": b"x" * 300}))
    assert back[b"labels"] == [3, 300]
    assert back[b"batch_label"] == b"x" * 300
    np.testing.assert_array_equal(back[b"data"], rows)
    assert loads(python2_pickle([b"caf\xe9"]), encoding="latin1") == ["café"]


def test_shared_and_cyclic_containers_keep_their_identity() -> None:
    shared: list[Any] = [np.arange(3)]
    shared.append(shared)
    back = loads(pickle.dumps({"a": shared, "b": shared, "c": (shared, shared)}))
    assert back["a"] is back["b"] is back["c"][0] is back["a"][1]
    assert type(back["a"][0]) is np.ndarray


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Calls(os.system, "true"), "system"),
        (Calls(eval, "1"), ".eval"),
        (Calls(getattr, "a", "upper"), ".getattr"),
        (Calls(io.open, "x"), "open"),
        (Calls(np.load, "x"), "load"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        (Path("x"), "pathlib"),
        (1j, ".complex"),
        ({1, 2}, "set"),
        (frozenset([1]), "frozenset"),
        (os.system, "system"),
        (np.ndarray, "a function"),
        (np.array([{}], dtype=object), "dtype 'O8'"),
        (np.zeros(2, [("a", "i4")]), "dtype 'V4'"),
        (np.array(["2020"], "M8[D]"), "dtype 'M8'"),
        (np.ma.masked_array([1]), "numpy.ma"),
        (Calls(bytearray, 10**12), "bytearray with int"),
        (Calls(bytes, 10**12), "no readable pickle"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_everything_else_is_refused_by_name(value: Any, named: str) -> None:
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        with pytest.raises(UnsafePickleError, match=r"^f\.pkl: ") as caught:
            loads(pickle.dumps([value], protocol), name="f.pkl")
        assert named in str(caught.value)
        assert isinstance(caught.value, ValueError)


def test_nothing_runs_before_the_refusal(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(UnsafePickleError):
        loads(pickle.dumps(Calls(os.mkdir, str(target))))
    assert not target.exists()


DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "before seeing STOP"),
        (b"no pickle", "unknown"),
        (pickle.dumps(list(range(1000)))[:-3], "not enough data"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "memo slot 2147483647"),  # LONG_BINPUT: every slot below would be made
        (b"\x80\x02\x82\x01.", "extension code 1"),
        (b"Pouter\n.", "outside object"),
        (b"\x96" + struct.pack("<Q", 2**60) + b".", "only 1 remain"),  # BYTEARRAY8 longer than the file
        (RECONSTRUCT + b"c__builtin__\nbytes\nK\x00\x85U\x01b\x87R.", "class of its own"),
        (RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R.", "type Array"),  # its state never comes
        (b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", "call of numpy.ndarray"),
        (DTYPE + b"(K\x03U\x01|N(U\x01at}K\x01K\x01K\x00tb.", "structured"),  # fields, and flags that deny objects
        (DTYPE + b"}(U\x05valueK\x01ub.", "no readable pickle"),  # a state that is no tuple
        (b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0ziptR.", "'zip'"),
        (b"c_codecs\nencode\n(N}U\x0c__defaults__)stb.", "change of a global"),
        (b"cnumpy\ndtype\n)\x81.", "must be a type"),
    ],
)
def test_broken_and_hostile_pickles_are_value_errors(content: bytes, reason: str) -> None:
    with pytest.raises(UnsafePickleError, match="pickle: found") as caught:
        loads(content)
    assert reason in str(caught.value)


def test_array_bytes_must_match_the_shape() -> None:
    state = b"(K\x01(J\xff\xff\xff\x7ft" + DTYPE + b"\x89U\x03abctb."
    with pytest.raises(UnsafePickleError, match="3 bytes for an array of shape"):
        loads(RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state)


def test_an_array_over_anything_but_bytes_is_refused() -> None:
    state = b"(K\x01(K\x01t" + DTYPE + b"\x89]tb."  # the values as a list, as object arrays have them
    with pytest.raises(UnsafePickleError, match="an array over list"):
        loads(RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state)


def test_bytearrays_of_python_2() -> None:
    assert loads(b"c__builtin__\nbytearray\n(X\x02\0\0\0\xc3\xa9U\x07latin-1tR.") == bytearray(b"\xe9")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=2)), min_size=1, max_size=5))
def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(protocol: int, edits: list[tuple[float, bytes]]) -> None:
    damaged = bytearray(
        pickle.dumps({b"data": np.zeros((2, 3), np.uint8), "s": np.float32(1), "t": (b"x", 2)}, protocol)
    )
    for place, content in edits:
        at = int(place * len(damaged))
        damaged[at : at + 1] = content
    with contextlib.suppress(UnsafePickleError):
        loads(bytes(damaged))


def test_deep_nesting_and_a_tuple_in_itself_are_refused() -> None:
    with pytest.raises(UnsafePickleError, match="nested too deep"):
        loads(b"]" * 100_000 + b"a" * 99_999 + b".")
    holder: list[Any] = []
    holder.append((holder, np.int64(1)))
    loads(pickle.dumps(holder))
    with pytest.raises(UnsafePickleError, match="holds itself"):
        loads(pickle.dumps(holder[0]))


def test_shared_tuples_do_not_take_exponential_time() -> None:
    value: Any = ()
    for _ in range(200):
        value = (value, value)
    assert len(loads(pickle.dumps(value))) == 2


def test_load_reads_plain_and_gzip_files_within_the_limit(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.pkl", tmp_path / "b.pkl.gz"
    plain.write_bytes(pickle.dumps([1, 2]))
    packed.write_bytes(gzip.compress(pickle.dumps(b"\0" * 10_000)))
    assert pickles.load(plain) == [1, 2]
    assert pickles.load(packed) == b"\0" * 10_000
    with pytest.raises(ValueError, match="more than 5,000 bytes once inflated"):
        pickles.load(packed, limit=5000)
