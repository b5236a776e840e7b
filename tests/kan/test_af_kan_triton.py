"""The Triton kernels give what tensor operations give: on a GPU, or in Triton's interpreter where there is none."""

import os
import subprocess
import sys

import pytest
import torch

from paperworks.kan.af_kan import AFKANLayer
from paperworks.kan.af_kan.functional import Options, Parameters, hidden_composite
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
KINDS = [
    *((activation, "quad1") for activation in ACTIVATIONS),
    *(("silu", function) for function in COMBINATIONS if function != "quad1"),
]


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@here
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("norm", ["sample", "batch", None])
def test_kernels_are_the_composite(kind, norm):
    from paperworks.kan.af_kan import fused, fused_triton

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 21, generator=generator).to(DEVICE)
    x[:, :6] = -1  # ties
    low = (torch.arange(-1, 3) / 3).to(DEVICE)
    weight, bias = torch.randn(4, generator=generator).to(DEVICE), torch.zeros(1, device=DEVICE)
    options = Options(*kind, "global_attn", norm)
    g = torch.randn(3, 21, generator=generator).to(DEVICE)
    found = []
    for fuse in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, low, low + 4 / 3, weight, bias)]
        p = Parameters(*leaves[1:], torch.tensor(1.3, device=DEVICE), None, None)
        if fuse:
            kernels = fused.Kernels(fused_triton.terms, fused_triton.terms_backward)
            sums = fused._Terms.apply(leaves[0], *p[:3], options, kernels)
            z = fused.finish_composite(*sums, p, options)
        else:
            z = hidden_composite(leaves[0], p, options)
        found.append([z, *torch.autograd.grad(z, leaves, g)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max().clamp(min=0.1)))


@here
def test_rows_longer_than_a_block():
    from paperworks.kan.af_kan import fused_triton

    x = torch.randn(2, 1500, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    low, weight = torch.tensor([-0.5, 0.1], device=DEVICE), torch.tensor([0.3, -2.0], device=DEVICE)
    weighted, sums, extremes = fused_triton.terms(x, low, low + 1, weight, Options())
    f = (torch.nn.functional.silu(x[..., None] - low) * torch.nn.functional.silu(low + 1 - x[..., None])).square()
    torch.testing.assert_close(weighted, f @ weight)
    torch.testing.assert_close(sums, f.sum(2))
    torch.testing.assert_close(extremes, torch.stack([f.amin(1), f.amax(1)], -1))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_cuda_layer_takes_the_kernels_and_repeats_itself():
    layer = AFKANLayer(784, 64).to(DEVICE)
    x = torch.randn(64, 784, device=DEVICE, requires_grad=True)
    first, second = (torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    again = AFKANLayer(784, 64).to(DEVICE).double()
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), again(x.double()).float(), rtol=1e-4, atol=1e-5)
