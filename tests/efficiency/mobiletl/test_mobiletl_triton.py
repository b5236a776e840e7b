"""The Triton kernels give what tensor operations give: on a GPU, or in Triton's interpreter where there is none."""

import os
import subprocess
import sys

import pytest
import torch

from paperworks.efficiency.mobiletl import ShiftOnlyNorm2d, SignedHardswish
from paperworks.efficiency.mobiletl.activation import (
    _codes,
    _composite,
    _composite_gradients,
    bin_slopes,
)
from paperworks.efficiency.mobiletl.kernels import layout_of

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@here
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (3, 5, 1, 1), (1, 2, 40, 30), (33, 70, 1, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kind", "backward"), [("relu", "sign"), ("relu6", "exact"), ("hardswish", "sign"), ("silu", "two_bit")]
)
@pytest.mark.parametrize("uniform", [False, True])
def test_kernels_are_the_composite(shape, channels_last, kind, backward, uniform):
    from paperworks.efficiency.mobiletl import mobiletl_triton

    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator)).to(DEVICE)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    g = torch.randn(shape, generator=generator).to(DEVICE)
    g = g.mean().expand(shape) if uniform else g
    a, b = (torch.randn(shape[1], generator=generator).to(DEVICE) for _ in range(2))
    for scale, shift in ((a, b), (None, None)):
        layout, slopes = layout_of(x, scale), bin_slopes(kind, backward)
        y, bits = mobiletl_triton.forward(x, scale, shift, layout, kind, backward)
        dx, db = mobiletl_triton.backward(g, bits, scale, layout, slopes)
        want, planes = _composite(x, scale, shift, kind, backward)
        want_dx, dz = _composite_gradients(g, scale, planes, slopes)
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dx, want_dx, rtol=1e-5, atol=1e-5)
        assert bits.numel() == len(planes) * -(-x.numel() // 8)
        if scale is None:
            assert db is None
        else:
            torch.testing.assert_close(db, dz.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


@here
def test_half_types_are_computed_in_float32():
    from paperworks.efficiency.mobiletl import mobiletl_triton

    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16)
    y, bits = mobiletl_triton.forward(x, None, None, layout_of(x, None), "hardswish", "sign")
    torch.testing.assert_close(y, torch.nn.functional.hardswish(x.float()).half(), rtol=1e-3, atol=1e-3)
    [plane] = _codes(x.float(), "hardswish", "sign")
    dx, _ = mobiletl_triton.backward(torch.ones_like(x), bits, None, layout_of(x, None), (0.0, 1.0))
    assert torch.equal(dx, plane.half())


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_cuda_tensor_takes_the_kernels_and_repeats_itself():
    norm = ShiftOnlyNorm2d(64, act=SignedHardswish()).to(DEVICE)
    x = torch.randn(16, 64, 28, 32, device=DEVICE, requires_grad=True)
    g = torch.randn_like(x)
    first = torch.autograd.grad(norm(x), (x, norm.bias), g)
    second = torch.autograd.grad(norm(x), (x, norm.bias), g)
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[0], g * (x > 0) / (1 + norm.eps) ** 0.5)
