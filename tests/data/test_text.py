from __future__ import annotations

import inspect
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data import text
from paperworks.data.sources import DataNotFoundError
from paperworks.data.text import all_windows, char_vocabulary, decode, encode, load_text, sample_windows, split_blocks


def test_docstrings_are_those_that_the_modules_have() -> None:
    found = load_text("docstrings")
    for documented in (json, json.JSONDecoder, json.dumps, Path.glob):
        assert str(inspect.getdoc(documented)) in found
    # in the order of the names of modules, and of the source within one
    places = [found.index(line) for line in ("Abstract Base Classes", "JSON (JavaScript Object Notation)", "ZIP files")]
    assert places == sorted(places)
    assert len(found) > 1_000_000
    assert load_text("docstrings") is found


def test_docstrings_are_parsed_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text('"""Package."""\nraise SystemExit("imported")\n')
    (tmp_path / "json" / "test").mkdir()
    (tmp_path / "json" / "test" / "t.py").write_text('"""A test."""')
    (tmp_path / "abc.py").write_text(
        '"""One."""\nclass A:\n    """Two."""\n    def f(self):\n        """Three."""\n\n'
        'if True:\n    async def g():\n        """Four."""\nelse:\n    def g():\n        """Five."""\n'
    )
    (tmp_path / "not_standard.py").write_text('"""No."""')
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    read = text.standard_library_docstrings.__wrapped__
    assert read() == "One.\n\nTwo.\n\nThree.\n\nFour.\n\nFive.\n\nPackage."
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "none")})
    with pytest.raises(DataNotFoundError, match="no sources of the standard library"):
        read()


def test_topics_are_the_language_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_text("topics")
    assert len(found) > 300_000
    assert found.index('The "assert" statement') < found.index('The "while" statement')
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataNotFoundError, match="no pydoc_data"):
        text.topics()


def test_text_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_bytes(b"zwei\r\nZeilen")
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbf" + "eins é".encode())
    (tmp_path / "skip.md").write_text("no")
    assert load_text(f"text:{tmp_path}") == "eins é\n\nzwei\nZeilen"
    assert load_text(f"text:{tmp_path}/b/2.txt") == "zwei\nZeilen"
    assert load_text(f"text:{tmp_path}/skip.md") == "no"


def test_text_errors_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"bad.txt with invalid start byte at byte 3; wanted UTF-8"):
        load_text(f"text:{tmp_path}")
    (tmp_path / "bad.txt").write_bytes(b"  \n")
    with pytest.raises(ValueError, match="found no text"):
        load_text(f"text:{tmp_path}")
    (tmp_path / "bad.txt").rename(tmp_path / "bad.md")
    with pytest.raises(ValueError, match=r"1 files, none of them \.txt"):
        load_text(f"text:{tmp_path}")
    with pytest.raises(DataNotFoundError):
        load_text(f"text:{tmp_path}/none")
    with pytest.raises(ValueError, match="wanted one of docstrings, topics, text:PATH"):
        load_text("digits")


@given(st.text())
def test_decode_inverts_encode(value: str) -> None:
    vocabulary = char_vocabulary(value + "a")
    assert vocabulary == sorted(set(value + "a"))
    tokens = encode(value, vocabulary)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [vocabulary.index(c) for c in value]
    assert decode(tokens, vocabulary) == value


def test_encode_takes_a_vocabulary_in_any_order_and_names_what_it_lacks() -> None:
    assert encode("abba", ["b", "a"]).tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="got 'x' at 2, wanted one of the 2 characters"):
        encode("abx", ["a", "b"])
    with pytest.raises(ValueError, match="vocabulary: got no character"):
        encode("a", [])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(1, 50), st.floats(0.01, 0.99), st.integers(0, 100))
def test_blocks_are_held_out_without_overlap(n: int, block: int, fraction: float, seed: int) -> None:
    block = min(block, n - 1)
    train, held = split_blocks(torch.arange(n), seed, validation_fraction=fraction, block=block)
    assert train
    assert held
    assert sorted(torch.cat(train + held).tolist()) == list(range(n))
    blocks = -(-n // block)
    for run in train + held:
        assert run.tolist() == list(range(int(run[0]), int(run[-1]) + 1))
        assert int(run[0]) % block == 0
    # neighbouring blocks of one side are one run
    starts = {int(run[0]) for run in train}
    assert not any(int(run[-1]) + 1 in starts for run in train)
    n_held = sum(-(-len(run) // block) for run in held)
    assert n_held == min(max(1, round(blocks * fraction)), blocks - 1)
    again = split_blocks(torch.arange(n), seed, validation_fraction=fraction, block=block)
    assert [r.tolist() for r in again[1]] == [r.tolist() for r in held]


def test_blocks_differ_by_seed_and_are_views() -> None:
    tokens = torch.arange(1000)
    held = {tuple(int(r[0]) for r in split_blocks(tokens, seed, block=10)[1]) for seed in range(10)}
    assert len(held) == 10
    train, _ = split_blocks(tokens, 0, block=10)
    assert all(run.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr() for run in train)


def test_blocks_refuse_what_cannot_be_split() -> None:
    for tokens in (torch.arange(10), torch.zeros(2, 50)):
        with pytest.raises(ValueError, match="tokens: got shape"):
            split_blocks(tokens, 0, block=10)
    with pytest.raises(ValueError, match="validation_fraction: got 1"):
        split_blocks(torch.arange(100), 0, block=10, validation_fraction=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 10), st.integers(0, 50))
def test_windows_stay_inside_their_runs(lengths: list[int], length: int, seed: int) -> None:
    runs = [torch.arange(n) + 100 * i for i, n in enumerate(lengths)]
    if max(lengths) <= length:
        with pytest.raises(ValueError, match=f"length: got {length} for runs of at most {max(lengths)}"):
            sample_windows(runs, batch_size=2, length=length, generator=torch.Generator())
        return
    x, y = sample_windows(runs, batch_size=5, length=length, generator=torch.Generator().manual_seed(seed))
    assert x.shape == y.shape == (5, length)
    assert torch.equal(y, x + 1)  # the next token, never one of another run
    full_x, full_y = all_windows(runs, length)
    assert torch.equal(full_y, full_x + 1)
    assert len(full_x) == sum((n - 1) // length for n in lengths if n)
    assert len(set(full_y.flatten().tolist())) == full_y.numel()  # each token is a target at most once


def test_every_window_is_as_likely_as_any_other() -> None:
    runs = [torch.arange(4), 10 + torch.arange(3), 20 + torch.arange(2)]
    x, _ = sample_windows(runs, batch_size=6000, length=2, generator=torch.Generator().manual_seed(0))
    counts = Counter(x[:, 0].tolist())
    assert set(counts) == {0, 1, 10}
    assert all(abs(count - 2000) < 200 for count in counts.values())  # standard deviation 37


def test_the_generator_decides_the_batch_alone() -> None:
    runs, state = [torch.arange(1000)], torch.get_rng_state()
    batches = [
        sample_windows(runs, batch_size=4, length=8, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
    assert torch.equal(torch.get_rng_state(), state)
