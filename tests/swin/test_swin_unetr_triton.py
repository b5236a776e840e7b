"""The Triton kernels of residual blocks give what the norms do one by one: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.swin.swin_unetr import SwinUNETR

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
KERNELS = ("_moments_kernel", "_residual_kernel", "_sums_kernel", "_backward_kernel")


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def step_by_step(a: Tensor, b: Tensor | None, normed: bool) -> Tensor:
    z = F.instance_norm(a, eps=1e-5)
    if b is not None:
        z = z + (F.instance_norm(b, eps=1e-5) if normed else b)
    return F.leaky_relu(z, 0.01)


@here
@pytest.mark.parametrize(
    ("size", "width", "how"),
    [((3, 5, 2), 3, (False, False)), ((3, 5, 2), 3, (True, False)), ((9, 11), 35, (True, True))],
    ids=["alone", "added", "normed"],
)
def test_kernels_are_the_steps(
    size: tuple[int, ...], width: int, how: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paperworks.swin.swin_unetr import residual_triton

    for name, value in (("ROWS", 32), ("REPEATS", 2)):  # several programs an image, at sizes fit for the interpreter
        monkeypatch.setattr(residual_triton, name, value)
    generator = torch.Generator().manual_seed(width)
    added, normed = how
    form = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    maps = [
        (3 * torch.randn(2, width, *size, generator=generator) + 50).contiguous(memory_format=form).to(DEVICE)
        for _ in range(1 + added)
    ]
    a, b = maps[0], maps[1] if added else None
    out, statistics = residual_triton.forward(a, b, normed, 1e-5, 0.01)
    exact = [m.double().requires_grad_() for m in maps]
    wanted = step_by_step(exact[0], exact[1] if added else None, normed)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
    assert out.is_contiguous(memory_format=form)
    g = torch.randn(out.shape, generator=generator).contiguous(memory_format=form).to(DEVICE)
    given = (a, b if normed else None, statistics, out, g, 0.01, torch.float32 if added else None)
    found = [d for d in residual_triton.backward(*given) if d is not None]
    for one, other in zip(found, torch.autograd.grad(wanted, exact, g.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@here
def test_types_mix_as_in_autocast() -> None:
    from paperworks.swin.swin_unetr import residual_triton

    a = torch.randn(1, 4, 6, 6, device=DEVICE).contiguous(memory_format=torch.channels_last)
    b = torch.randn(1, 4, 6, 6, device=DEVICE).contiguous(memory_format=torch.channels_last)
    out, statistics = residual_triton.forward(a.half(), b, False, 1e-5, 0.01)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, step_by_step(a, b, False), rtol=1e-2, atol=1e-2)
    d_a, d_b = residual_triton.backward(a.half(), None, statistics, out, b, 0.01, torch.float32)
    assert d_b is not None
    assert (d_a.dtype, d_b.dtype) == (torch.float16, torch.float32)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compile_for_hopper(kernel: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from paperworks.swin.swin_unetr import residual_triton

    function = getattr(residual_triton, kernel)
    known = {"ROWS": 64, "COLUMNS": 32, "REPEATS": 16, "ADDED": True, "NORMED": True}
    constants = {name: value for name, value in known.items() if name in function.arg_names}
    single = {"statistics_ptr", "parts_ptr", "means_ptr"}
    signature = {
        name: "constexpr" if name in constants else "*fp32" if name in single else "*bf16" if name.endswith("_ptr")
        else "fp32" if name == "slope" else "i32"
        for name in function.arg_names
    }  # fmt: skip
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    assert ".visible .entry" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_network_on_a_gpu_takes_them() -> None:
    torch.manual_seed(0)
    model = SwinUNETR(2, 3, 12).to(DEVICE)
    x = torch.randn(1, 2, 64, 32, 32, device=DEVICE)
    found = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    exact = model.double()
    wanted = torch.autograd.grad(exact(x.double()).square().mean(), list(exact.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))
