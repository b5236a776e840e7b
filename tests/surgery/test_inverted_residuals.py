"""Inverted residual blocks are found by their structure, whatever library built them."""

import pytest
import torch
from torch import nn

from paperworks.papers.protocols.mobilenets import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from paperworks.surgery.inverted_residuals import activation_kind, find_inverted_residuals, inverted_residuals


def layer(i: int, o: int, kernel: int = 1, groups: int = 1, act: nn.Module | None = None) -> nn.Sequential:
    parts = [nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*parts, *([act] if act else []))


class Block(nn.Module):
    """A block whose forward adds its input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def block(width: int = 16, act: type[nn.Module] = nn.ReLU6) -> Block:
    return Block(layer(8, width, act=act()), layer(width, width, 3, width, act()), layer(width, 8))


@pytest.mark.parametrize(("build", "blocks"), [(mobilenet_v2, 17), (mobilenet_v3_small, 11), (mobilenet_v3_large, 15)])
def test_every_block_of_the_torchvision_networks_in_order(build, blocks):
    with torch.device("meta"):
        model = build()
    found = find_inverted_residuals(model)
    assert [name for name, _ in found] == [f"features.{i}" for i in range(1, blocks + 1)]
    assert all(model.get_submodule(name) is module for name, module in found)


def test_the_parts_of_a_block_with_squeeze_excite():
    with torch.device("meta"):
        model = mobilenet_v3_small()
    last = inverted_residuals(model)[-1]
    prefix = "features.11.block"
    assert [s.convolution for s in last.inner] == [f"{prefix}.0.0", f"{prefix}.1.0"]
    assert [s.norm for s in last.inner] == [f"{prefix}.0.1", f"{prefix}.1.1"]
    assert [s.activation for s in last.inner] == [f"{prefix}.0.2", f"{prefix}.1.2"]
    assert last.gate == (f"{prefix}.2.fc1", f"{prefix}.2.fc2")
    assert (last.project.convolution, last.project.activation) == (f"{prefix}.3.0", None)


def test_expansion_1_has_one_inner_stage():
    with torch.device("meta"):
        first = inverted_residuals(mobilenet_v2())[0]
    assert len(first.inner) == 1
    assert first.inner[0].convolution == "features.1.conv.0.0"


def test_mobilenet_v2_of_transformers():
    transformers = pytest.importorskip("transformers", reason="its blocks have names of their own")
    with torch.device("meta"):
        model = transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config())
    names = [name for name, _ in find_inverted_residuals(model)]
    assert names == [f"mobilenet_v2.layer.{i}" for i in range(16)]


def test_efficientnet_of_transformers():
    transformers = pytest.importorskip("transformers", reason="its blocks have names of their own")
    with torch.device("meta"):
        model = transformers.EfficientNetForImageClassification(
            transformers.EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)
        )
    found = inverted_residuals(model)
    assert [b.name for b in found] == [f"efficientnet.encoder.blocks.{i}" for i in range(16)]
    assert all(len(b.gate) == 2 for b in found)
    assert len(found[0].inner) == 1


def test_efficientnet_of_monai_has_one_activation_a_block():
    nets = pytest.importorskip("monai.networks.nets", reason="its blocks share one activation")
    model = nets.EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=3, num_classes=10)
    found = inverted_residuals(model)
    assert len(found) == 16
    assert all(b.shared_activation == f"{b.name}._swish" for b in found)


class TimmNormAct(nn.BatchNorm2d):
    """The norm that timm's blocks use: activation and drop layer inside."""

    def __init__(self, channels: int, apply_act: bool = True) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.Hardswish() if apply_act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


class TimmSeparable(nn.Module):
    """timm's DepthwiseSeparableConv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), TimmNormAct(8)
        self.conv_pw, self.bn2 = nn.Conv2d(8, 8, 1, bias=False), TimmNormAct(8, apply_act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))


def test_timms_norm_with_its_activation_inside():
    [found] = inverted_residuals(nn.Sequential(nn.Sequential(TimmSeparable())))
    assert (found.name, [s.activation for s in found.inner]) == ("0.0", [None])


def test_the_module_that_adds_the_input_is_the_block():
    inner = block()
    assert find_inverted_residuals(inner) == [("", inner)]
    assert find_inverted_residuals(nn.Sequential(inner)) == [("0", inner)]
    assert find_inverted_residuals(nn.ModuleDict({"a": nn.Sequential(inner)})) == [("a.0", inner)]
    bare = nn.Sequential(layer(8, 16, act=nn.ReLU()), layer(16, 16, 3, 16, nn.ReLU()), layer(16, 8))
    assert find_inverted_residuals(bare) == [("", bare)]


def test_a_block_under_two_names_is_found_once():
    one = block()
    assert [name for name, _ in find_inverted_residuals(nn.Sequential(one, nn.ReLU(), one))] == ["0"]


NOT_BLOCKS = {
    "a bottleneck of ResNet": nn.Sequential(layer(16, 4), layer(4, 4, 3), layer(4, 16)),
    "MobileNetV1, activation after the last norm": nn.Sequential(
        layer(8, 8, 3, 8, nn.ReLU()), layer(8, 16, act=nn.ReLU())
    ),
    "no norm between": nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)),
    "grouped, not depthwise": nn.Sequential(layer(8, 16), layer(16, 16, 3, 4), layer(16, 8)),
    "another width": nn.Sequential(layer(8, 12), layer(16, 16, 3, 16), layer(16, 8)),
    "two depthwise": nn.Sequential(layer(8, 8, 3, 8), layer(8, 8, 3, 8), layer(8, 8)),
    "three-dimensional": nn.Sequential(nn.Conv3d(8, 8, 3, groups=8), nn.BatchNorm3d(8), nn.Conv3d(8, 8, 1)),
    "linear": nn.Sequential(nn.Linear(3, 3)),
    "nothing": nn.Sequential(),
}


@pytest.mark.parametrize("module", NOT_BLOCKS.values(), ids=NOT_BLOCKS)
def test_other_structures_are_no_blocks(module):
    assert find_inverted_residuals(module) == []


def test_no_module_is_refused():
    with pytest.raises(TypeError, match="model"):
        find_inverted_residuals([block()])


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU6(inplace=True), "relu6"),
        (nn.Hardtanh(0, 6), "relu6"),
        (nn.Hardtanh(), None),
        (nn.Hardswish(), "hardswish"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), None),
        (nn.PReLU(), None),
        (nn.Hardsigmoid(), None),
    ],
)
def test_activation_kinds(module, kind):
    assert activation_kind(module) == kind


def test_a_network_with_num_features_is_no_norm() -> None:
    class TimmNetwork(nn.Sequential):
        num_features = 8

    assert len(inverted_residuals(TimmNetwork(TimmSeparable(), TimmSeparable()))) == 2
