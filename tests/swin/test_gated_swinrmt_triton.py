"""The Triton kernel gives what tensor operations give: on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from paperworks.swin.gated_swinrmt import GatedRetention
from paperworks.swin.gated_swinrmt.windows import MapWindows

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@here
@pytest.mark.parametrize("variant", ["retention", "swat"])
@pytest.mark.parametrize("masked", ["no", "windows", "any"])
@pytest.mark.parametrize("rotary", [True, False])
def test_kernel_is_the_tensor_operations(variant: str, masked: str, rotary: bool) -> None:
    from paperworks.swin.gated_swinrmt import passes_triton

    torch.manual_seed(0)
    m = GatedRetention(64, 2, (3, 7), variant, rotary=rotary, device=DEVICE)
    masks = None
    if masked == "windows":
        masks = MapWindows((5, 14), (3, 7), (1, 3)).masks(torch.device(DEVICE))
    elif masked == "any":
        masks = m._masks(torch.rand(4, 21, 21, device=DEVICE) > 0.6, 4, 3, 7)
    q, k, v = (torch.randn(4, 3, 7, 2, 32, device=DEVICE, requires_grad=True) for _ in range(3))
    wanted = m._passes(*m._turned(q, k), v, masks)
    given = (q, k, v, m._angles(q), 32**-0.5, *m._both_tables(q, *q.shape[1:3], masks))
    with torch.no_grad():
        [found] = passes_triton.run(*given)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        g = torch.randn(wanted.shape, device=DEVICE)
        gradients = passes_triton.run(*given, g=g)
    for one, other in zip(gradients, torch.autograd.grad(wanted, (q, k, v), g), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("factor", [False, True])
def test_kernel_compiles_for_hopper(backward: bool, factor: bool) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from paperworks.swin.gated_swinrmt.passes_triton import _passes_kernel

    names = _passes_kernel.arg_names
    constants = {
        "D": 32, "N": 64, "ROTARY": True, "FACTOR": factor, "BACKWARD": backward, "PRECISION": "tf32",
    }  # fmt: skip
    halves = {"q_ptr", "k_ptr", "v_ptr", "cos_ptr", "sin_ptr", "out_ptr", "g_ptr", "dq_ptr", "dk_ptr", "dv_ptr"}
    tables = {"row_add", "row_factor", "column_add", "column_factor"}
    signature = {
        name: "constexpr" if name in constants else "*bf16" if name in halves else "*fp32" if name in tables
        else "fp32" if name == "scale" else "i32"
        for name in names
    }  # fmt: skip
    source = ASTSource(fn=_passes_kernel, signature=signature, constexprs=constants)
    assert "mma" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("variant", ["retention", "swat"])
def test_a_cuda_tensor_takes_the_kernel(variant: str) -> None:
    m = GatedRetention(128, 4, (7, 7), variant, device=DEVICE)
    x = torch.randn(8, 49, 128, device=DEVICE, requires_grad=True)
    found = torch.autograd.grad(m(x).square().sum(), (x, *m.parameters()))
    exact = m.double()
    double = x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(exact(double).square().sum(), (double, *exact.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)
