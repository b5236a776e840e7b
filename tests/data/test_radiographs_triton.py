"""The Triton kernels give what the CPU loops give: on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from paperworks.data import radiographs
from paperworks.data.radiographs import drr

pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton decides when it is first imported whether it interprets: a process of its own is needed for that.
INTERPRETED = DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
CONE: dict[str, Any] = {"detector_shape": (5, 6), "pixel_size": 2.3}


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels run in this process")
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@here
@pytest.mark.parametrize("shape", [(7, 5, 6), (1, 9, 2)])
def test_kernels_are_the_loops_and_their_adjoint(shape: tuple[int, ...]) -> None:
    from paperworks.data import radiographs_triton

    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 1, *shape, generator=generator).requires_grad_()
    spacing, angles = (1.0, 2.0, 1.5), torch.tensor([0.0, 130.0])
    wanted = drr(volume, spacing, angles, **CONE)
    weight = torch.randn(wanted.shape, generator=generator)
    [slope] = torch.autograd.grad(wanted, volume, weight)
    cone = radiographs._cone(
        volume.detach().to(DEVICE), spacing, angles, CONE["detector_shape"], CONE["pixel_size"], 1800, 2000, None
    )
    walks, steps = radiographs._walks(cone)
    found = radiographs_triton.project(volume.detach().to(DEVICE), walks, steps, cone.step)
    back = radiographs_triton.spread_back(weight.to(DEVICE), shape, walks, steps, cone.step)
    torch.testing.assert_close(found.view(wanted.shape).cpu(), wanted.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back.cpu(), slope, rtol=1e-4, atol=1e-4)


@here
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_on_a_gpu_drr_runs_the_kernels() -> None:
    volume = torch.rand(1, 1, 20, 21, 22)
    wanted = drr(volume, (1, 1, 1), 40.0, **CONE)
    given = volume.cuda().requires_grad_()
    found = drr(given, (1, 1, 1), 40.0, **CONE)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)
    assert "_Project" in type(found.grad_fn).__name__
    found.square().sum().backward()
    assert given.grad is not None
