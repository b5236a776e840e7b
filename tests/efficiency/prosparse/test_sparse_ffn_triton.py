"""The Triton kernels give what the dense formula gives: on a GPU, or in Triton's interpreter where there is none."""

import os
import subprocess
import sys

import pytest
import torch

from paperworks.efficiency.prosparse.sparse_ffn import gate_product, sparse_down, sparse_ffn, sparse_up

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


def parts(d, d_ff, tokens, dtype):
    make = torch.Generator().manual_seed(0)
    shapes = [(tokens, d), (tokens, d_ff), (d_ff, d), (d_ff, d), (d_ff,), (d,)]
    return [torch.randn(shape, generator=make).to(DEVICE, dtype) for shape in shapes]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """The interpreter takes milliseconds a program, so several blocks are had at small sizes."""
    if INTERPRETED:
        from paperworks.efficiency.prosparse import sparse_ffn_triton

        for name, value in {"_LISTED": 32, "_ROWS": 4, "_ALONG": 16, "_SPLITS": 3, "_DEEP": 4, "_COLUMNS": 16}.items():
            monkeypatch.setattr(sparse_ffn_triton, name, value)


@here
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("d", "d_ff", "tokens", "threshold"), [
    (7, 13, 1, 0.0), (40, 70, 2, 1.5), (33, 1, 3, 0.0), (20, 40, 1, 1e4), (16, 33, 2, "channels"), (16, 32, 1, -0.0),
])  # fmt: skip
def test_kernels_are_the_formula(dtype, d, d_ff, tokens, threshold):
    x, gate, W_up, W_down_t, up_bias, down_bias = parts(d, d_ff, tokens, dtype)
    if threshold == "channels":
        threshold = torch.rand(d_ff, device=DEVICE)
    y = sparse_ffn(x, gate, W_up, W_down_t, threshold, up_bias=up_bias, down_bias=down_bias, backend="triton")
    assert y.dtype == dtype
    x1 = sparse_up(x, gate, W_up, threshold, up_bias=up_bias, backend="triton")
    steps = sparse_down(x1, W_down_t, down_bias=down_bias, backend="triton")
    t = torch.as_tensor(threshold, device=DEVICE)
    x1 = torch.where(gate >= t, gate, 0).double() * (x.double() @ W_up.double().T + up_bias.double())
    wanted = x1 @ W_down_t.double() + down_bias.double()
    scale = float(wanted.abs().max())
    for got in (y, steps):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=TOLERANCES[dtype] * scale)


@here
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_predicted_rows_of_the_gate(dtype):
    x, _, W_gate, _, bias, _ = parts(40, 70, 3, dtype)
    named = torch.rand(3, 70, generator=torch.Generator().manual_seed(1)).to(DEVICE) > 0.8
    gate = gate_product(x, W_gate, bias, named, backend="triton")
    assert (gate[~named] == -torch.inf).all()
    exact = (x.double() @ W_gate.double().T + bias.double())[named]
    torch.testing.assert_close(gate[named].double(), exact, rtol=0, atol=TOLERANCES[dtype] * float(exact.abs().max()))


@here
def test_idle_rows_are_not_read_and_nan_shows():
    x, gate, W_up, W_down_t, *_ = parts(20, 90, 2, torch.float32)
    wanted = sparse_ffn(x, gate, W_up, W_down_t, 0.8, backend="triton")
    idle = (gate < 0.8).all(0)
    W_up[idle], W_down_t[idle] = torch.nan, torch.nan
    assert torch.equal(sparse_ffn(x, gate, W_up, W_down_t, 0.8, backend="triton"), wanted)
    gate[0, int(idle.nonzero()[0])] = torch.nan
    y = sparse_ffn(x, gate, W_up, W_down_t, 0.8, backend="triton")
    assert y[0].isnan().all()
    assert torch.equal(y[1], wanted[1])


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(("name", "acc"), [("bf16", "fp32"), ("fp64", "fp64")])
def test_kernels_compile_for_a_hopper_gpu(name, acc):
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from paperworks.efficiency.prosparse import sparse_ffn_triton as kernels

    weights, sums, listed = f"*{name}", f"*{acc}", "*i32"
    wide = {"fp32": tl.float32, "fp64": tl.float64}[acc]
    cases = [
        (kernels._list_kernel, [weights, sums, listed, listed, "i32"], {"STEP": 0, "BLOCK": 4096}),
        (
            kernels._rows_kernel,
            [weights, weights, weights, weights, listed, listed, sums, "i32", "i32"],
            {"BIAS": True, "UP": True, "ACC": wide, "ROWS": 8, "ALONG": 512},
        ),
        (
            kernels._down_kernel,
            [sums, weights, listed, listed, sums, "i32", "i32"],
            {"ACC": wide, "SPLITS": 16, "DEEP": 16, "COLUMNS": 128},
        ),
    ]
    for kernel, types, constants in cases:
        names = [n for n in kernel.arg_names if n not in constants]
        signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert "ld.global" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_cuda_tensor_takes_the_kernels_without_waiting_for_the_device():
    x, gate, W_up, W_down_t, *_ = parts(512, 1376, 1, torch.bfloat16)
    wanted = sparse_ffn(x, gate, W_up, W_down_t, 1.0, backend="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = sparse_ffn(x, gate, W_up, W_down_t, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(y, wanted)
