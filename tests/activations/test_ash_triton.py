"""The Triton kernels give what the formula gives: on a GPU, or in Triton's interpreter where there is none."""

import os
import subprocess
import sys

import pytest
import torch

from paperworks.activations.ash import ASH
from paperworks.activations.ash.operator import formula

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
CASES = {
    "whole sample": ((3, 4, 5, 5), 1, 1, False),
    "whole sample, a pair a channel": ((3, 4, 5, 5), 4, 1, False),
    "whole sample, channels last": ((3, 4, 5, 5), 4, 1, True),
    "tokens": ((2, 3, 10), 1, 2, False),
    "tokens, a pair a channel": ((2, 3, 10), 10, 2, False),
    "split sample": ((2, 3, 60, 60), 1, 1, False),
    "split sample, a pair a channel": ((2, 3, 60, 60), 3, 1, False),
    "split sample, channels last": ((2, 3, 60, 60), 3, 1, True),
}


@pytest.fixture(scope="module")
def kernels():
    from paperworks.activations.ash import ash_triton

    return ash_triton


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


def exact(x, g, alpha, z_k, channel_dim, first_dim, leak):
    """Value and gradients of the formula in float64."""
    leaves = [t.double().requires_grad_() for t in (x, alpha, z_k)]
    shape = [alpha.numel() if d == channel_dim else 1 for d in range(x.ndim)]
    dims = tuple(range(first_dim, x.ndim))
    y = formula(leaves[0], leaves[1].view(shape), leaves[2].view(shape), dims, leak, 1e-6)
    return y.detach(), *torch.autograd.grad(y, leaves, g.double())


@here
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mean", [0.3, 1e4])
def test_kernels_agree_with_the_formula(kernels, case, mean):
    shape, channels, channel_dim, channels_last = CASES[case]
    first_dim = 2 if len(shape) == 3 else 1
    make = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=make) + mean).to(DEVICE)
    g = torch.randn(shape, generator=make).to(DEVICE)
    if channels_last:
        x, g = (t.to(memory_format=torch.channels_last) for t in (x, g))
    alpha = (torch.rand(channels, generator=make) + 0.5).to(DEVICE)
    z_k = torch.randn(channels, generator=make).to(DEVICE)
    constants = (channel_dim, first_dim, 0.1)
    y, statistics = kernels.forward(x, alpha, z_k, *constants, 1e-6)
    gradients = kernels.backward(g, x, alpha, z_k, statistics, *constants, 1e-6)
    assert y.stride() == x.stride()
    for got, wanted in zip((y, *gradients), exact(x, g, alpha, z_k, *constants), strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=3e-6 * scale)


@here
def test_bfloat16_is_computed_in_float32(kernels):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16().to(DEVICE)
    one = torch.ones(1, device=DEVICE)
    y, _ = kernels.forward(x, one, one, 1, 1, 0.0, 1e-6)
    wanted = formula(x.double(), 1.0, 1.0, (1, 2, 3), 0.0, 1e-6)
    torch.testing.assert_close(y, wanted.bfloat16(), rtol=0.008, atol=1e-6)


@here
def test_an_empty_batch_has_an_empty_result(kernels):
    x, one = torch.empty(0, 3, 4, 4, device=DEVICE), torch.ones(1, device=DEVICE)
    y, statistics = kernels.forward(x, one, one, 1, 1, 0.0, 1e-6)
    dx, dalpha, dz = kernels.backward(x, x, one, one, statistics, 1, 1, 0.0, 1e-6)
    assert y.shape == dx.shape == x.shape
    assert dalpha.item() == dz.item() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(128, 64, 32, 32), (32, 64, 56, 56), (4, 256, 128, 128), (16, 512, 1024)])
def test_cuda_tensors_use_the_kernels(shape):
    x = torch.randn(shape, device="cuda", requires_grad=True)
    layer = ASH(z_k=0.5, leak=0.1, device="cuda")
    g = torch.randn_like(x)
    y = layer(x)
    y.backward(g)
    wanted = exact(x.detach(), g, layer.alpha.detach(), layer.z_k.detach(), 1, 2 if x.ndim == 3 else 1, 0.1)
    for got, exactly in zip((y, x.grad, layer.alpha.grad, layer.z_k.grad), wanted, strict=True):
        torch.testing.assert_close(got.double(), exactly, rtol=1e-4, atol=1e-5 * exactly.abs().max().item())
