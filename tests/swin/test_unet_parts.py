"""The convolutional parts compute what MONAI's blocks compute, from the same weights."""

from __future__ import annotations

import pytest
import torch

from paperworks.swin.unet_parts import ResidualBlock, UpBlock


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
def test_monai_residual_block(ndim: int, widths: tuple[int, int]) -> None:
    blocks = pytest.importorskip("monai.networks.blocks")
    theirs = blocks.UnetResBlock(ndim, *widths, kernel_size=3, stride=1, norm_name="instance").double()
    ours = ResidualBlock(ndim, *widths).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, widths[0], *(6, 5, 4)[:ndim], dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x))
    if widths[0] == 4:
        torch.testing.assert_close(ours(x[:, :3], x[:, 3:]), theirs(x))


@pytest.mark.parametrize("ndim", [2, 3])
def test_monai_up_block(ndim: int) -> None:
    blocks = pytest.importorskip("monai.networks.blocks")
    theirs = blocks.UnetrUpBlock(ndim, 6, 3, 3, 2, "instance", res_block=True).double()
    ours = UpBlock(ndim, 6, 3).double()
    ours.load_state_dict(theirs.state_dict())
    small, large = (torch.randn(2, c, *size[:ndim], dtype=torch.double) for c, size in ((6, (3, 2, 2)), (3, (6, 4, 4))))
    torch.testing.assert_close(ours(small, large), theirs(small, large))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="ndim: got 4, wanted 2 or 3"):
        ResidualBlock(4, 1, 1)
    with pytest.raises(ValueError, match="x: got 3 channels, wanted 2"):
        ResidualBlock(2, 2, 2)(torch.zeros(1, 3, 4, 4))
