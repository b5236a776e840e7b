"""The MobileNets are those of the literature, and checkpoints of torchvision and timm load into them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paperworks.papers.protocols.mobilenets import (
    NETWORKS,
    load_weights,
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [(mobilenet_v2, 3_504_872), (mobilenet_v3_small, 2_542_856), (mobilenet_v3_large, 5_483_032)],
)
def test_published_numbers_of_parameters(build, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == parameters


def test_names_and_shapes_of_torchvision():
    with torch.device("meta"):
        v2, v3 = mobilenet_v2().state_dict(), mobilenet_v3_small().state_dict()
    assert v2["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert v2["features.17.conv.2.weight"].shape == (320, 960, 1, 1)
    assert v2["features.18.1.running_var"].shape == (1280,)
    assert v2["classifier.1.weight"].shape == (1000, 1280)
    assert v3["features.1.block.1.fc1.weight"].shape == (8, 16, 1, 1)
    assert v3["features.11.block.2.fc2.bias"].shape == (576,)
    assert v3["features.12.0.weight"].shape == (576, 96, 1, 1)
    assert v3["classifier.0.weight"].shape == (1024, 576)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_and_width(name):
    model = NETWORKS[name](7, 1, width=0.35, stem_stride=1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def small(classes: int = 5, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = mobilenet_v3_small(classes, width=0.35)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return model.eval()


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_with_torchvisions_names(tmp_path, suffix):
    first, path = small(), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": first.state_dict()}, path)
    else:
        save_file(first.state_dict(), path)
    second = small(seed=1)
    assert load_weights(second, path) == []
    assert torch.equal(second(X), first(X))
    other = small(7, seed=2)
    assert load_weights(other, path) == ["classifier.3.weight", "classifier.3.bias"]
    assert torch.equal(other.features(X), first.features(X))


def timm_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The same weights as timm has them: its names, no activation between, the first classifier layer a convolution."""
    renamed: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        stem, _, leaf = key.rpartition(".")
        shaped = value[:, :, None, None] if key == "classifier.0.weight" else value
        renamed[f"blocks.{stem.replace('.', '_')}.{leaf}"] = shaped
    return renamed


def test_a_checkpoint_of_other_names_goes_by_order(tmp_path):
    first = small()
    torch.save(timm_state(first), tmp_path / "timm.pth")
    second = small(seed=1)
    assert load_weights(second, tmp_path / "timm.pth") == []
    assert {m.eps for m in second.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    for module in first.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    assert torch.equal(second(X), first(X))


def test_checkpoints_that_do_not_fit(tmp_path):
    torch.save(mobilenet_v2(5, width=0.35).state_dict(), tmp_path / "v2.pth")
    with pytest.raises(ValueError, match="layers"):
        load_weights(small(), tmp_path / "v2.pth")
    torch.save(mobilenet_v3_small(5, width=0.5).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"shape .* want"):
        load_weights(small(), tmp_path / "wide.pth")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        load_weights(small(), tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="state dict"):
        load_weights(small(), tmp_path / "list.pth")


class Unsafe:
    def __reduce__(self):
        return (print, ("run",))


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    torch.save({"state_dict": Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(ValueError, match="no state dict"):
        load_weights(small(), tmp_path / "unsafe.pth")
    assert capsys.readouterr().out == ""
