"""Peak memory of a call."""

import threading

import pytest
import torch

from paperworks.measure import memory
from paperworks.measure.memory import peak_memory

MIB = 1 << 20


def tensor(mib: float) -> torch.Tensor:
    return torch.ones(int(mib * MIB) // 4)


def temporary(mib: float) -> None:
    tensor(mib).sum()


@pytest.mark.parametrize("mib", [64, 160])
def test_a_temporary_is_seen_within_ten_percent(mib: int) -> None:
    assert peak_memory(lambda: temporary(mib)) == pytest.approx(mib * MIB, rel=0.1)


def test_the_peak_counts_not_the_sum() -> None:
    def one_after_the_other() -> None:
        for _ in range(8):
            temporary(48)

    def together() -> float:
        return float(sum(part.sum() for part in [tensor(48) for _ in range(4)]))

    # some kernels (sandboxed ones) give a freed block back only while the next is being filled
    assert 0.85 * 48 * MIB < peak_memory(one_after_the_other) < 2.3 * 48 * MIB
    assert peak_memory(together) == pytest.approx(4 * 48 * MIB, rel=0.1)


def test_the_result_counts_and_what_was_there_before_does_not() -> None:
    before = tensor(64)
    assert peak_memory(lambda: tensor(32)) == pytest.approx(32 * MIB, rel=0.15)
    assert peak_memory(lambda: None) < 2 * MIB
    assert before.numel() == 16 * MIB


def test_an_earlier_peak_does_not_count() -> None:
    temporary(128)
    assert peak_memory(lambda: temporary(32)) == pytest.approx(32 * MIB, rel=0.15)


def test_memory_freed_before_does_not_hide_small_blocks() -> None:
    def small() -> int:
        return len([torch.ones(4096) for _ in range(2048)])

    small()
    assert peak_memory(small) == pytest.approx(32 * MIB, rel=0.2)


def test_sampling_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_kernel_peak", lambda: False)

    def held() -> None:
        big = tensor(64)
        assert not threading.Event().wait(0.05)
        del big

    assert peak_memory(held) == pytest.approx(64 * MIB, rel=0.1)
    assert not [t for t in threading.enumerate() if t.name == "peak_memory"]


def test_a_kernel_file_that_cannot_be_written_means_sampling(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    assert not memory._reset_kernel_peak()
    assert peak_memory(lambda: tensor(64)) == pytest.approx(64 * MIB, rel=0.1)


@pytest.mark.parametrize("kernel", [True, False])
def test_an_error_of_the_function_comes_through(monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    if not kernel:
        monkeypatch.setattr(memory, "_reset_kernel_peak", lambda: False)

    def fails() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        peak_memory(fails)
    assert not [t for t in threading.enumerate() if t.name == "peak_memory"]


def test_bad_device() -> None:
    with pytest.raises(ValueError, match="device: got meta, want cpu or cuda"):
        peak_memory(lambda: None, device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="CUDA is not available"):
        peak_memory(lambda: None, device="cuda")


@pytest.mark.gpu
def test_cuda_peak() -> None:
    before = torch.ones(64 * MIB // 4, device="cuda")
    peak = peak_memory(lambda: torch.ones(32 * MIB // 4, device="cuda").sum(), device="cuda")
    assert peak == pytest.approx(32 * MIB, rel=0.01)
    assert before.is_cuda
