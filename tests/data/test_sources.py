from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.data import sources
from paperworks.data.sources import DataNotFoundError, data_signature, parse_source, read_file, walk_files


def test_a_spec_is_scheme_path_and_options(tmp_path: Path) -> None:
    source = parse_source(f"imagefolder:{tmp_path}?size=32x48&mode=gray&limit=5")
    assert (source.scheme, source.path) == ("imagefolder", tmp_path)
    assert source.size() == (32, 48)
    assert source.choice("mode", ("gray", "rgb")) == "gray"
    assert source.integer("limit") == 5
    assert source.integer("size_of_nothing") is None
    assert parse_source("digits?size=16").size() == (16, 16)
    with pytest.raises(ValueError, match="found a spec without a path"):
        _ = parse_source("digits").location
    assert parse_source(f"npz:{tmp_path}?scale=255").number("scale") == 255.0


def test_paths_may_be_relative_home_or_hold_colons_and_question_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "a:b?what=now & then"
    odd.mkdir()
    assert parse_source(f"idx:{odd}").path == odd
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_source("idx:a:b?what=now & then").path == odd
    assert parse_source("idx:~").path == tmp_path


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("mnist", "images", ["'mnist'", "digits, imagefolder:PATH, npz:PATH, idx:PATH, cifar:PATH"]),
        ("/some/path", None, ["'/some/path'", "text:PATH"]),
        ("docstrings", "images", ["'docstrings'", "digits"]),
        ("digits", "text", ["docstrings, topics, text:PATH"]),
        ("digits:/tmp", None, ["found a path", "wanted digits"]),
        ("cifar", None, ["found no path", "cifar:PATH"]),
        ("cifar:", None, ["found no path"]),
        ("digits?limit=3", None, ["'limit'", "digits takes size, mode"]),
        ("topics?size=3", None, ["topics takes no option"]),
        ("digits?size=8&size=9", None, ["'size' twice"]),
        ("", None, ["''"]),
    ],
)
def test_a_wrong_spec_says_what_was_found_and_wanted(spec: str, kind: str | None, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse_source(spec, kind)
    assert repr(spec) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_path_is_both_a_value_error_and_a_missing_file(tmp_path: Path) -> None:
    for kind in (ValueError, FileNotFoundError):
        with pytest.raises(kind, match="found nothing at"):
            parse_source(f"idx:{tmp_path}/none")
    assert issubclass(DataNotFoundError, ValueError)
    with pytest.raises(TypeError, match="got int"):
        parse_source(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["size=0", "size=3x", "size=axb", "size=-1", "limit=0", "limit=1.5", "mode=blue"])
def test_wrong_option_values_are_named(tmp_path: Path, option: str) -> None:
    source = parse_source(f"imagefolder:{tmp_path}?{option}")
    with pytest.raises(ValueError, match=f"found {option}; wanted"):
        _ = source.size(), source.integer("limit"), source.choice("mode", ("gray", "rgb"))
    for scale in ("0", "-1", "nan", "inf", "x"):
        with pytest.raises(ValueError, match="a positive number"):
            parse_source(f"npz:{tmp_path}?scale={scale}").number("scale")


@given(st.text())
def test_no_text_does_anything_but_parse_or_raise_value_error(spec: str) -> None:
    try:
        source = parse_source(spec)
    except ValueError:
        return
    assert source.scheme in sources.SCHEMES


def test_walk_takes_files_in_order_and_no_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/x/y", "c", ".hidden/z", "a/.DS_Store", "__MACOSX/q"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    files, left_out = walk_files(tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in files] == ["a/x/y", "b/1", "b/2", "c"]
    assert left_out == []


def test_links_out_of_the_folder_and_loops_are_left_out(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("s")
    (root / "a" / "f").write_text("f")
    (root / "inside").symlink_to(root / "a")
    (root / "out").symlink_to(outside)
    (root / "out_file").symlink_to(outside / "secret")
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    os.mkfifo(root / "pipe")
    files, left_out = walk_files(root)
    assert [f.relative_to(root).as_posix() for f in files] == ["a/f", "inside/f"]
    assert left_out == [
        "a/up (link to a folder that holds it)",
        "inside/up (link to a folder that holds it)",
        "out (link out of the folder)",
        "out_file (link out of the folder)",
        "pipe (not a regular file)",
        "self (broken link)",
    ]
    followed, _ = walk_files(root, follow_links=True)
    assert {"out/secret", "out_file"} <= {f.relative_to(root).as_posix() for f in followed}


def test_read_file_inflates_within_its_limit(tmp_path: Path) -> None:
    plain, packed, bomb = tmp_path / "p", tmp_path / "g", tmp_path / "bomb.gz"
    plain.write_bytes(b"abc")
    packed.write_bytes(gzip.compress(b"abc"))  # known by its first bytes, not by its name
    bomb.write_bytes(gzip.compress(b"\0" * 5_000_000))
    assert read_file(plain) == read_file(packed) == b"abc"
    assert len(bomb.read_bytes()) < 10_000
    with pytest.raises(ValueError, match="more than 1,000,000 bytes once inflated"):
        read_file(bomb, limit=1_000_000)
    with pytest.raises(ValueError, match="more than 2 bytes; wanted at most"):
        read_file(plain, limit=2)


def test_read_file_takes_whole_regular_files_only(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(bytes(range(256)) * 50)[:-20])
    with pytest.raises(ValueError, match=r"cut\.gz: found data that cannot be read"):
        read_file(cut)
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            read_file(path)
    with pytest.raises(ValueError, match="found nothing"):
        read_file(tmp_path / "none")


def test_signature_follows_names_sizes_contents_and_options(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    (root / "a" / "one").write_bytes(b"1")
    spec = f"imagefolder:{root}"
    first = data_signature(spec)
    assert data_signature(spec) == first
    os.utime(root / "a" / "one", (1, 1))
    assert data_signature(spec) == first  # small data is known by its contents
    (root / "a" / "one").write_bytes(b"2")
    os.utime(root / "a" / "one", (1, 1))
    second = data_signature(spec)
    (root / "a" / "one").rename(root / "a" / "two")
    third = data_signature(spec)
    (root / "a" / "more").write_bytes(b"")
    fourth = data_signature(spec)
    assert len({first, second, third, fourth, data_signature(f"{spec}?size=8")}) == 5
    root.rename(tmp_path / "moved")
    assert data_signature(f"imagefolder:{tmp_path / 'moved'}") == fourth


def test_signature_of_large_data_follows_modification_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CONTENT_BYTES", 3)
    file = tmp_path / "x.npz"
    file.write_bytes(b"12345")
    os.utime(file, (1, 1))
    first = data_signature(f"npz:{file}")
    file.write_bytes(b"54321")
    os.utime(file, (2, 2))
    assert data_signature(f"npz:{file}") != first


def test_signature_of_an_idx_file_covers_its_labels(tmp_path: Path) -> None:
    images, labels = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    images.write_bytes(b"i")
    labels.write_bytes(b"1")
    first = data_signature(f"idx:{images}")
    labels.write_bytes(b"2")
    assert data_signature(f"idx:{images}") != first


def test_signature_of_software_data_names_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn

    first = data_signature("digits")
    assert first.startswith("digits-")
    assert first == data_signature("digits") != data_signature("digits?size=16")
    monkeypatch.setattr(sklearn, "__version__", "0.0")
    assert data_signature("digits") != first
    assert data_signature("docstrings") != data_signature("topics")
