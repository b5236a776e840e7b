"""The Triton kernels give what tensor operations give: on a GPU, or in Triton's interpreter where there is none."""

import os
import subprocess
import sys

import pytest
import torch

from paperworks.kan.bases import get_basis
from paperworks.kan.fused import SQUASH_CODES, Run, Tile, codes, composite

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
FAMILIES = ("bspline", "chebyshev", "fourier", "rbf", "wavelet")


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def compare(tiles, squash, n, d, o, dtype=torch.float32):
    """The kernels beside the composite in float64, forward and backward, with the base term last."""
    from paperworks.kan import fused_triton

    generator = torch.Generator().manual_seed(4)
    x = (1.5 * torch.randn(n, d, generator=generator)).to(DEVICE, dtype)
    g = torch.randn(n, o, generator=generator).to(DEVICE, dtype)
    base = torch.randn(o, d, generator=generator).to(DEVICE, dtype)
    weights = [tile.weight.to(dtype) for tile in tiles] + [base]
    plan = [codes(tile.runs) for tile in tiles] + [((0, None),)]
    y = fused_triton.forward(x, plan, weights, SQUASH_CODES[squash])
    found = fused_triton.backward(x, g, plan, weights, SQUASH_CODES[squash], [True] * (len(weights) + 1))

    leaves = [t.double().requires_grad_() for t in (x, *weights)]
    exact = [Tile(tile.runs, w) for tile, w in zip(tiles, leaves[1:], strict=False)]
    wanted_y = composite(leaves[0], leaves[-1], exact, squash)
    wanted = torch.autograd.grad(wanted_y, leaves, g.double())
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for f, w in zip((y, *found), (wanted_y, *wanted), strict=True):
        assert f.dtype == dtype
        assert (f.double() - w).abs().max() <= tolerance * max(1.0, w.abs().max().item())


def weight(o, d, k):
    return torch.randn(o, d, k, generator=torch.Generator().manual_seed(5)).to(DEVICE)


@here
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("squash", ["tanh", "clamp"])
def test_one_family(family, squash):
    tiles = [Tile((Run(get_basis(family, 4)),), weight(5, 3, 4))]
    compare(tiles, squash, 9, 3, 5)


@here
def test_several_blocks_and_terms():
    tiles = [Tile((Run(get_basis(family, 6)),), weight(70, 40, 6)) for family in ("rbf", "fourier")]
    compare(tiles, "tanh", 70, 40, 70)


@here
def test_families_by_input():
    columns = [torch.tensor(c, dtype=torch.int32, device=DEVICE) for c in ([4, 0], [2], [1, 3])]
    runs = tuple(Run(get_basis(f, 4), c) for f, c in zip(("bspline", "wavelet", "chebyshev"), columns, strict=True))
    compare([Tile(runs, weight(3, 5, 4))], "tanh", 8, 5, 3)


@here
def test_half_precision():
    compare([Tile((Run(get_basis("rbf", 4)),), weight(5, 3, 4))], "tanh", 9, 3, 5, torch.float16)
