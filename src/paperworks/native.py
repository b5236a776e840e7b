"""Fused CPU loops: one plain C file beside its Python module, compiled at first use and called through `ctypes`.

A memory-bound method (an activation, a spiking neuron) is held back by the passes that eager tensor code makes over
its input, not by arithmetic. Such a method keeps a C file that makes one pass, calls `load`, and hands over pointers
and `torch.get_num_threads()`. Where there is no compiler, `load` returns None and the caller runs its eager code: same
results, more passes. `PAPERWORKS_NATIVE=0` asks for that on purpose.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch.autograd import forward_ad

_COMPILE_SECONDS = 300.0

_lock = threading.Lock()
_libraries: dict[tuple[Path, tuple[str, ...]], ctypes.CDLL | None] = {}


def load(source: Path, functions: Mapping[str, Sequence[Any]]) -> ctypes.CDLL | None:
    """Compile and load one C file; later calls return the same library.

    The loops are optimised for this CPU with OpenMP and relaxed arithmetic: sums may be reordered (write nothing
    that relies on their order, such as compensated summation), `-0.0` may become `0.0`, `expf` and `tanhf` are the
    vector versions (within 4 ulp). Infinities and NaN keep their meaning, and denormals are left as the process has
    them. The library is kept in the user's cache directory under a hash of everything it depends on, so processes,
    users and machines that share a home can do this at the same time.

    Args:
        source: the C file. It may include only system headers.
        functions: the `ctypes` argument types of each function called. Every function returns void.

    Returns:
        The library, which releases the GIL while it runs; or None where there is no C compiler, where
        `PAPERWORKS_NATIVE=0`, or where the compilation failed (a `RuntimeWarning` gives, once, the compiler's words).

    Raises:
        FileNotFoundError: `source` does not exist.
        AttributeError: the file does not define one of `functions`.
    """
    if os.environ.get("PAPERWORKS_NATIVE") == "0":
        return None
    key = (source, tuple(functions))
    if key not in _libraries:
        with _lock:
            if key not in _libraries:
                _libraries[key] = _open(source, functions)
    return _libraries[key]


def _open(source: Path, functions: Mapping[str, Sequence[Any]]) -> ctypes.CDLL | None:
    text = source.read_bytes()
    compiler = _compiler()
    if not compiler:
        return None
    try:
        library = ctypes.CDLL(str(_built(source, text, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{source.name} did not compile; slower code runs instead (PAPERWORKS_NATIVE=0 silences this):\n{said}",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    for name, types in functions.items():
        function = getattr(library, name)
        function.argtypes = list(types)
        function.restype = None
    return library


def _built(source: Path, text: bytes, compiler: tuple[str, ...]) -> Path:
    """The path of the compiled library, built if the cache has none."""
    compile_flags, link_flags = _flags()
    facts = [" ".join((*compiler, *compile_flags, *link_flags)), _version(compiler), _cpu()]
    key = hashlib.sha256(b"\0".join([text, *(fact.encode() for fact in facts)])).hexdigest()[:32]
    target = _directory() / f"{source.stem}-{key}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        compiled, linked = Path(scratch, "a.o"), Path(scratch, "a.so")
        # Compiling and linking are two commands because gcc < 13, given -ffast-math when it links a shared library,
        # adds start-up code that makes the whole process flush denormals.
        _call([*compiler, *compile_flags, "-c", str(source), "-o", str(compiled)])
        _call([*compiler, str(compiled), *link_flags, "-o", str(linked)])
        os.replace(linked, target)
    return target


def _flags() -> tuple[list[str], list[str]]:
    # -fno-finite-math-only keeps NaN and infinity; glibc then has to be told by hand to declare its vector functions.
    fast = ["-O3", "-ffast-math", "-fno-finite-math-only", "-D__FAST_MATH__", "-fPIC", "-std=gnu11"]
    if sys.platform == "darwin":  # Apple's compiler has no OpenMP: the pragmas are ignored and one thread runs
        return [*fast, "-mcpu=native"], ["-shared", "-lm"]
    return [*fast, "-march=native", "-fopenmp"], ["-shared", "-fopenmp", "-lm"]


def _compiler() -> tuple[str, ...]:
    """The C compiler as a command: `$CC`, else the first of cc, gcc, clang; empty where there is none."""
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        path = shutil.which(words[0]) if words else None
        if path:
            return path, *words[1:]
    return ()


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS
    )
    return done.stdout


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return _call([*compiler, "--version"])


@cache
def _cpu() -> str:
    """What `-march=native` depends on, so that machines with one home directory do not share libraries by mistake."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    facts = {"vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features"}
    kept = {line for line in lines if line.partition(":")[0].strip() in facts}
    return "\n".join([platform.machine(), *sorted(kept)])


@cache
def _directory() -> Path:
    """The cache directory, or one for this process alone where the user's cannot be written."""
    directory = Path(platformdirs.user_cache_dir("paperworks", appauthor=False)) / "native"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        return Path(tempfile.mkdtemp(prefix="paperworks-native-"))


def must_be_traceable(*tensors: torch.Tensor) -> bool:
    """Whether something other than plain eager reverse mode is looking, which a call by pointer would hide from.

    That is compilation, tracing, `torch.func`, a dispatch mode, forward-mode gradients, batched gradients (tensors
    without a storage) and subclasses of tensors. Autocast is the caller's to think of.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or any(
            type(t) not in (torch.Tensor, torch.nn.Parameter) or t.is_meta or not torch._C._has_storage(t)
            for t in tensors
        )
    )
