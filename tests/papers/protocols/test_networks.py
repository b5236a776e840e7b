"""The networks of the image protocol against what the literature says of them."""

import pytest
import torch
from torch import nn

from paperworks.data.images import ImageData
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.networks import NETWORKS, build_network, network_signature
from paperworks.surgery.activations import replace_activations

# name: (parameters, activations), for ten classes of 32x32 colour images.
# ResNet-164: 54 bottlenecks of three, and the last; He et al. (2016), Table 4: 1.7 M.
# WRN-28-10: 12 blocks of two, and the last; Zagoruyko and Komodakis (2016), Table 4: 36.5 M.
# DenseNet (L = 100, k = 12): 96 layers, two transitions, the last; Huang et al. (2017), Table 2: 7.0 M.
# ResNet-18 with a 3x3 stem: eight blocks of two, and the stem.
PUBLISHED = {
    "resnet164": (1_703_258, 163),
    "wrn28-10": (36_479_194, 25),
    "densenet100-12": (6_979_642, 99),
    "resnet18": (11_173_962, 17),
}
MILLIONS = {"resnet164": 1.7, "wrn28-10": 36.5, "densenet100-12": 7.0, "resnet18": 11.2}


def on_meta(name: str, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    with torch.device("meta"):
        return NETWORKS[name](num_classes, in_channels, image_size)


def blank(classes: int, channels: int, size: int) -> ImageData:
    names = [str(i) for i in range(classes)]
    return ImageData("blank", torch.zeros(classes, channels, size, size), torch.arange(classes), names)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_depth_are_those_of_the_literature(name):
    model = on_meta(name)
    parameters, activations = PUBLISHED[name]
    assert count_parameters(model) == parameters
    assert round(parameters / 1e6, 1) == MILLIONS[name]
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == activations


def test_vit_tiny_is_the_published_encoder():
    # 12 blocks of width 192, each 12 d^2 of matrices, 9 d of their biases and 4 d of norms; a norm at the end.
    d, tokens, patch = 192, 65, 4
    blocks = 12 * (12 * d * d + 13 * d)
    assert count_parameters(on_meta("vit-tiny")) == blocks + 2 * d + (3 * patch**2 + 1 + 1 + tokens) * d + 10 * d + 10


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("classes", "channels", "size"), [(10, 3, 32), (7, 1, 8)])
def test_images_become_logits(name, classes, channels, size):
    model = on_meta(name, classes, channels, size)
    images = torch.zeros(2, channels, size, size, device="meta")
    assert model.eval()(images).shape == (2, classes)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_activation_is_a_relu_of_its_own(name):
    model = on_meta(name)
    names = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.ReLU)]
    report = replace_activations(model, nn.PReLU)
    assert sorted(report.replaced) == sorted(names)
    assert not report.shared
    assert not report.not_replaceable
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


@pytest.mark.parametrize("name", ["convnet", "vit", "resnet164"])
def test_every_parameter_has_a_gradient(name):
    model = NETWORKS[name](5, 1, 8)
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_a_network_by_name_fits_the_data():
    assert build_network("convnet", blank(6, 3, 16))(torch.zeros(1, 3, 16, 16)).shape == (1, 6)


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="convnet, vit"):
        build_network("no such network!", blank(2, 1, 8))


def test_only_what_lies_outside_has_a_signature():
    assert network_signature("vit") == ""
    assert network_signature("paperworks.papers.protocols.networks:vit_tiny") != ""
