"""The one way to run fused C code: compiled once, cached, safe beside other threads and processes, never required."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from paperworks import native

POINTER = ctypes.c_void_p
SIGNATURES = {"logistic": [POINTER, POINTER, ctypes.c_long, ctypes.c_int]}
LOGISTIC = """
#include <math.h>
void logistic(const float *x, float *y, long n, int threads) {
#pragma omp parallel for simd num_threads(threads)
  for (long i = 0; i < n; i++) y[i] = 1.0f / (1.0f + expf(-x[i]));
}
"""
needs_compiler = pytest.mark.skipif(not native._compiler(), reason="no C compiler on this machine")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C file and an empty cache of its own."""
    monkeypatch.setattr(native, "_libraries", {})
    monkeypatch.delenv("PAPERWORKS_NATIVE", raising=False)
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(native, "_directory", lambda: cache)
    path = tmp_path / "logistic.c"
    path.write_text(LOGISTIC)
    return path


def logistic(library, x, threads=1):
    y = np.empty_like(x)
    library.logistic(x.ctypes.data, y.ctypes.data, x.size, threads)
    return y


@needs_compiler
def test_compiled_loop_is_right(source):
    x = np.linspace(-120, 120, 10_007, dtype=np.float32)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    library = native.load(source, SIGNATURES)
    np.testing.assert_allclose(logistic(library, x), expected, rtol=5e-7, atol=1e-38)
    np.testing.assert_array_equal(logistic(library, x, threads=2), logistic(library, x))


@needs_compiler
def test_nan_and_infinity_keep_their_meaning(source):
    x = np.array([np.nan, np.inf, -np.inf] * 11, dtype=np.float32)
    y = logistic(native.load(source, SIGNATURES), x)
    np.testing.assert_array_equal(y, np.array([np.nan, 1, 0] * 11, dtype=np.float32))


@needs_compiler
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64", reason="libmvec is glibc's")
def test_the_loop_calls_the_vector_exponential(source):
    native.load(source, SIGNATURES)
    (library,) = (source.parent / "cache").glob("*.so")
    assert b"_expf" in library.read_bytes()
    assert b"_ZGV" in library.read_bytes()


@needs_compiler
def test_denormals_of_the_process_survive_the_load(source):
    native.load(source, SIGNATURES)
    half = np.array([1e-40], dtype=np.float32) * np.float32(0.5)
    assert half[0] > 0


@needs_compiler
def test_a_second_process_reuses_the_library_and_a_changed_source_does_not(source):
    native.load(source, SIGNATURES)
    (library,) = (source.parent / "cache").iterdir()
    made = library.stat().st_mtime_ns
    native._libraries.clear()
    native.load(source, SIGNATURES)
    assert library.stat().st_mtime_ns == made
    native._libraries.clear()
    source.write_text(LOGISTIC.replace("1.0f /", "2.0f /"))
    x = np.zeros(3, dtype=np.float32)
    np.testing.assert_array_equal(logistic(native.load(source, SIGNATURES), x), np.ones(3, np.float32))
    assert len(list((source.parent / "cache").iterdir())) == 2


@needs_compiler
def test_threads_get_one_library(source):
    got = []
    threads = [threading.Thread(target=lambda: got.append(native.load(source, SIGNATURES))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6
    assert all(library is got[0] and library is not None for library in got)


@needs_compiler
def test_processes_that_start_together_all_get_a_working_library(source):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        import numpy as np
        from paperworks import native
        sys.path.insert(0, sys.argv[2])
        from test_native import SIGNATURES, logistic
        source = Path(sys.argv[1])
        native._directory = lambda: source.parent / "cache"
        library = native.load(source, SIGNATURES)
        assert (logistic(library, np.zeros(100, dtype=np.float32)) == 0.5).all()
    """)
    command = [sys.executable, "-c", script, str(source), str(Path(__file__).parent)]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert len(list((source.parent / "cache").iterdir())) == 1


def test_switched_off_by_the_environment(source, monkeypatch):
    monkeypatch.setenv("PAPERWORKS_NATIVE", "0")
    assert native.load(source, SIGNATURES) is None


def test_no_compiler_means_none_and_no_noise(source, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.load(source, SIGNATURES) is None


@needs_compiler
def test_a_failed_compilation_warns_once_in_the_compilers_words(source):
    source.write_text("this is not C\n")
    with pytest.warns(RuntimeWarning, match=r"logistic\.c did not compile(.|\n)*error"):
        assert native.load(source, SIGNATURES) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.load(source, SIGNATURES) is None
    assert list((source.parent / "cache").iterdir()) == []


@needs_compiler
def test_the_compiler_can_be_chosen(source, monkeypatch):
    monkeypatch.setenv("CC", f"{native._compiler()[0]} -DCHOSEN")
    source.write_text(LOGISTIC + "#ifndef CHOSEN\n#error not chosen\n#endif\n")
    assert native.load(source, SIGNATURES) is not None


def test_a_missing_source_or_function_is_an_error(source):
    with pytest.raises(FileNotFoundError):
        native.load(source.with_name("absent.c"), SIGNATURES)
    if native._compiler():
        with pytest.raises(AttributeError, match="tangent"):
            native.load(source, {"tangent": []})


def test_a_read_only_cache_directory_is_replaced_by_a_private_one(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setattr(native.platformdirs, "user_cache_dir", lambda *args, **kwargs: str(blocked))
    native._directory.cache_clear()
    try:
        directory = native._directory()
        assert directory.is_dir()
        assert os.stat(directory).st_mode & 0o077 == 0
        directory.rmdir()
    finally:
        native._directory.cache_clear()
