"""The Triton kernels give what tensor operations give: on a GPU, or in Triton's interpreter where there is none."""

import math
import os
import subprocess
import sys

import pytest
import torch

from paperworks.activations.crrelu import CRReLU, _composite, _composite_gradients

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
LAYOUTS = [(1, 1, 1), (1, 1, 5000), (2, 3, 49), (3, 5, 2100), (70, 130, 1), (33, 1, 1)]


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@here
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("uniform", [False, True])
def test_kernels_are_the_composite(layout, dtype, uniform):
    from paperworks.activations import crrelu_triton

    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(layout, generator=generator)).to(DEVICE, dtype)
    g = torch.randn(layout, generator=generator).to(DEVICE, dtype)
    g = g.mean().expand(layout) if uniform else g
    eps = torch.randn(layout[1], generator=generator).to(DEVICE)
    wide = eps.view(1, -1, 1)
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
    y = crrelu_triton.forward(x, eps, *layout)
    dx, d_eps = crrelu_triton.backward(x, g, eps, *layout)
    want_dx, want_d_eps = _composite_gradients(x, wide, g)
    torch.testing.assert_close(y, _composite(x, wide), **tolerance)
    torch.testing.assert_close(dx, want_dx, **tolerance)
    torch.testing.assert_close(d_eps, want_d_eps.flatten(), rtol=1e-4, atol=1e-4)


@here
def test_extremes_stay_clean():
    from paperworks.activations import crrelu_triton

    x = torch.tensor([300.0, -300.0, math.inf, -math.inf, 0.0], device=DEVICE)
    eps = torch.tensor([0.5], device=DEVICE)
    assert crrelu_triton.forward(x, eps, 1, 1, 5).tolist() == [300, 0, math.inf, 0, 0]
    dx, d_eps = crrelu_triton.backward(x, torch.ones_like(x), eps, 1, 1, 5)
    assert dx.tolist() == [1, 0, 1, 0, 0.5]
    assert d_eps.tolist() == [0]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("channel_dim", [None, 1, -1])
def test_a_cuda_tensor_takes_the_kernels_and_repeats_itself(channel_dim):
    x = torch.randn(16, 64, 28, 32, device=DEVICE, requires_grad=True)
    m = CRReLU(0.2, num_parameters=x.shape[channel_dim] if channel_dim else 1, channel_dim=channel_dim or 1).to(DEVICE)
    g = torch.randn_like(x)
    y = m(x)
    assert type(y.grad_fn).__name__ == "_FusedBackward"
    first = torch.autograd.grad(y, (x, m.eps), g)
    second = torch.autograd.grad(m(x), (x, m.eps), g)
    assert torch.equal(first[1], second[1])
    shape = [1] * 4
    shape[channel_dim or 1] = m.eps.numel()
    eps = m.eps.detach().view(shape).requires_grad_()
    want = torch.autograd.grad(_composite(x, eps), (x, eps), g)
    torch.testing.assert_close(first[0], want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first[1], want[1].flatten(), rtol=1e-3, atol=1e-2)
