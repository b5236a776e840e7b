"""Peak memory of a call, above what was in use when it started."""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

__all__ = ["peak_memory"]

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_SAMPLE_SECONDS = 0.001


def peak_memory(fn: Callable[[], object], *, device: torch.device | str | int = "cpu") -> int:
    """Bytes by which memory in use grew at most during `fn()`, its result included.

    On CUDA: the allocator's own peak. On the CPU: resident memory of the whole process. On Linux the kernel keeps
    that peak exactly; elsewhere, or where the kernel's counter cannot be reset, a thread samples it every
    millisecond and may miss a shorter peak. Memory that `fn` reserves and never writes is not resident and does not
    count; what other threads allocate meanwhile does. Free memory held back by the C library is handed to the system
    first, since `fn` would use it again unseen. Call a function once before measuring it when one-off costs
    (thread pools, lazily loaded kernels) are not wanted.

    Args:
        fn: function of no argument.
        device: whose memory: the CPU, or a CUDA device.

    Raises:
        ValueError: another kind of device.
        RuntimeError: CUDA asked for and not available.
    """
    where = torch.device(device)
    if where.type == "cuda":
        return _cuda_peak(fn, where)
    if where.type != "cpu":
        raise ValueError(f"device: got {where}, want cpu or cuda")
    gc.collect()
    _return_free_memory()
    if _reset_kernel_peak():
        start = _status_bytes("VmRSS")
        result = fn()
        peak = _status_bytes("VmHWM")
        del result
        return max(0, peak - start)
    return _sampled_peak(fn)


def _cuda_peak(fn: Callable[[], object], device: torch.device) -> int:
    if not torch.cuda.is_available():
        raise RuntimeError(f"device: got {device}, but CUDA is not available")
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    result = fn()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del result
    return max(0, peak - start)


def _return_free_memory() -> None:
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)


def _reset_kernel_peak() -> bool:
    """Set the kernel's peak of resident memory (VmHWM) to the present; whether it can do so."""
    try:
        _CLEAR_REFS.write_text("5")  # "5" resets the peak, see proc_pid_clear_refs(5)
        return _status_bytes("VmHWM") - _status_bytes("VmRSS") < 1 << 20
    except (OSError, ValueError):  # another system, or a container that hides or ignores the file
        return False


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_STATUS} has no {field}")


def _sampled_peak(fn: Callable[[], object]) -> int:
    process = psutil.Process()
    done = threading.Event()
    start = process.memory_info().rss
    peak = start

    def sample() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample, daemon=True, name="peak_memory")
    sampler.start()
    try:
        result = fn()
        after = process.memory_info().rss
        del result
    finally:
        done.set()
        sampler.join()
    return max(peak, after) - start
