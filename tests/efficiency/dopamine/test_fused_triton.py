"""The Triton kernels give what the formula gives: on a GPU, or in Triton's interpreter where there is none."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from paperworks.efficiency.dopamine import fused
from paperworks.efficiency.dopamine.gate import gated

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
PHI = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "given": nn.Tanh()}
LAYOUTS = [(1, 40, 70, 1), (3, 6, 33, 1), (2, 4, 3, 40)]  # rows, outer, channels, inner


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@here
@pytest.mark.parametrize("kind", PHI)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("sizes", LAYOUTS)
def test_kernels_are_the_formula(kind, hard, sizes):
    from paperworks.efficiency.dopamine import fused_triton

    rows, outer, channels, inner = sizes
    layout = fused._Layout(None, *sizes, 4.0, hard, kind, 1)
    generator = torch.Generator().manual_seed(0)
    z, g = ((2 * torch.randn(outer, channels, inner, generator=generator)).to(DEVICE) for _ in range(2))
    tau, gain = (torch.randn(rows, channels, generator=generator).to(DEVICE).requires_grad_() for _ in range(2))
    leaf = z.clone().requires_grad_()
    phi = PHI[kind](leaf)
    given = phi.detach() if kind == "given" else None
    per_sample = [t.repeat_interleave(outer // rows, 0) for t in (tau, gain)]
    want = fused.formula(leaf, phi, *per_sample, 4.0, hard, 1)
    y = fused_triton.forward(z, given, tau.detach(), gain.detach(), layout)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    dz, dphi, dtau, dgain = fused_triton.backward(z, given, g, tau.detach(), gain.detach(), layout)
    if kind == "given":
        assert dphi is not None
        dz = dz + dphi * (1 - given**2)  # tanh' = 1 - tanh^2
    wanted = torch.autograd.grad(want, (leaf, tau, gain), g, allow_unused=True)
    torch.testing.assert_close(dz, wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dgain, wanted[2], rtol=1e-4, atol=1e-4)
    if hard:
        assert wanted[1] is None
        assert not dtau.any()
    else:
        torch.testing.assert_close(dtau, wanted[1], rtol=1e-4, atol=1e-4)


@here
def test_half_precision_is_computed_in_float32():
    from paperworks.efficiency.dopamine import fused_triton

    layout = fused._Layout(None, 1, 40, 20, 1, 4.0, False, "gelu", -1)
    z = torch.randn(40, 20, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16)
    tau, gain = (torch.full((1, 20), value, device=DEVICE) for value in (-1.0, 1.5))
    y = fused_triton.forward(z, None, tau, gain, layout)
    want = fused.formula(z, torch.nn.functional.gelu(z.float()), tau, gain, 4.0, False, -1)
    torch.testing.assert_close(y, want.half(), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_cuda_tensor_takes_the_kernels_and_repeats_itself():
    z = torch.randn(16, 197, 768, device=DEVICE, requires_grad=True)
    tau, gain = (torch.randn(768, device=DEVICE, requires_grad=True) for _ in range(2))
    g = torch.randn_like(z)
    y = gated(z, None, nn.GELU(), tau, gain, 4.0, False, -1)
    assert type(y.grad_fn).__name__ == "_FusedBackward"
    first = torch.autograd.grad(y, (z, tau, gain), g)
    second = torch.autograd.grad(gated(z, None, nn.GELU(), tau, gain, 4.0, False, -1), (z, tau, gain), g)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    want = torch.autograd.grad(fused.formula(z, nn.functional.gelu(z), tau, gain, 4.0, False, -1), (z, tau, gain), g)
    for a, b in zip(first, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)
