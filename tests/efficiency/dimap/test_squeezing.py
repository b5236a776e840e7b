"""Cutting neurons and heads that give a constant: the same output from a smaller dense model."""

import contextlib
import copy

import pytest
import torch
from efficiency.dimap.doubles import TimmSwin, TorchvisionSwin, transformers_swin
from torch import nn

from paperworks.efficiency.dimap import Masks, dimap_prune, find_modules, squeeze
from paperworks.surgery.swin_parts import find_attentions, find_mlps

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {"timm": TimmSwin(), "torchvision": TorchvisionSwin()}
    with contextlib.suppress(ImportError):
        found["transformers"] = transformers_swin()
    return {name: net.double().eval() for name, net in found.items()}


NETWORKS = networks()


def output(net: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        made = net(images.double())
    return getattr(made, "logits", made)


@pytest.mark.parametrize("name", NETWORKS)
def test_dead_rows_and_columns_go_and_their_constants_stay(name):
    net = copy.deepcopy(NETWORKS[name])
    mlp = find_mlps(net)[0]
    fc1, fc2 = mlp.fc1[1], mlp.fc2[1]
    fc1.bias.data += 1  # so that act(bias) is no small change
    with torch.no_grad():
        fc1.weight[[0, 3]] = 0
        fc2.weight[:, [3, 5, 6]] = 0
    hidden = fc1.out_features
    small = squeeze(net)
    assert find_mlps(small)[0].fc1[1].out_features == hidden - 4
    assert find_mlps(small)[0].fc2[1].in_features == hidden - 4
    assert find_mlps(small)[1].fc1[1].out_features == find_mlps(net)[1].fc1[1].out_features
    torch.testing.assert_close(output(small), output(net), rtol=1e-10, atol=1e-12)
    assert fc1.out_features == hidden, "the model given stays as it is"


def kill_head(net: nn.Module, head: int, part: str) -> None:
    attention = find_attentions(net)[0]
    inner = attention.proj[1].in_features
    columns = slice(head * inner // 2, (head + 1) * inner // 2)
    with torch.no_grad():
        if part == "proj":
            attention.proj[1].weight[:, columns] = 0
        else:
            value = attention.qkv[-1][1]
            value.bias += 1
            value.weight[-inner:][columns] = 0


@pytest.mark.parametrize("part", ["value", "proj"])
@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "torchvision"])
def test_a_dead_head_goes(name, head, part):
    net = copy.deepcopy(NETWORKS[name])
    kill_head(net, head, part)
    small = squeeze(net)
    before, after = find_attentions(net)[0], find_attentions(small)[0]
    assert after.proj[1].in_features == before.proj[1].in_features // 2
    assert sum(linear.out_features for _, linear in after.qkv) == 3 * after.proj[1].in_features
    tables = [p.shape[1] for n, p in after.module.named_parameters() if n.endswith("bias_table")]
    assert tables == [1]
    torch.testing.assert_close(output(small), output(net), rtol=1e-10, atol=1e-12)


def test_an_attention_that_cannot_do_with_fewer_heads_keeps_them():
    net = copy.deepcopy(NETWORKS["torchvision"])
    kill_head(net, 0, "proj")
    small = squeeze(net)
    assert find_attentions(small)[0].module.num_heads == 2
    torch.testing.assert_close(output(small), output(net), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("permanent", [True, False])
def test_a_pruned_network_computes_the_same(name, permanent):
    net = copy.deepcopy(NETWORKS[name])
    for _, layer in find_modules(net)["mlp"]:
        scale = torch.linspace(-9, 2, len(layer.weight), dtype=torch.float64).exp()
        layer.weight.data *= scale[torch.randperm(len(scale), generator=torch.Generator().manual_seed(0)), None]
    dimap_prune(net, 0.8, permanent=permanent)
    small = squeeze(net)
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in net.parameters())
    assert not any("parametrizations" in key for key in small.state_dict())
    torch.testing.assert_close(output(small), output(net), rtol=1e-10, atol=1e-12)


def test_what_is_left_learns_and_a_dense_network_loses_nothing():
    dense = NETWORKS["timm"]
    assert {n: p.shape for n, p in squeeze(dense).named_parameters()} == {
        n: p.shape for n, p in dense.named_parameters()
    }
    net = copy.deepcopy(dense)
    kill_head(net, 0, "value")
    small = squeeze(net)
    small(IMAGES.double()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_an_mlp_or_attention_that_is_dead_as_a_whole_keeps_one_part():
    net = copy.deepcopy(NETWORKS["timm"])
    masks = {
        f"{name}.weight": torch.zeros_like(linear.weight, dtype=torch.bool)
        for pairs in find_modules(net).values()
        for name, linear in pairs
    }
    Masks(masks).apply(net)
    small = squeeze(net)
    assert {mlp.fc1[1].out_features for mlp in find_mlps(small)} == {1}
    assert {attention.module.num_heads for attention in find_attentions(small)} == {1}
    torch.testing.assert_close(output(small), output(net), rtol=1e-12, atol=1e-14)


def test_without_a_bias_to_take_the_constant_a_neuron_stays():
    net = copy.deepcopy(NETWORKS["timm"])
    mlp = net.layers[0].blocks[0].mlp
    mlp.fc2.bias = None
    mlp.fc1.weight.data[0] = 0
    small = squeeze(net)
    assert small.layers[0].blocks[0].mlp.fc1.out_features == 32
    torch.testing.assert_close(output(small), output(net), rtol=1e-12, atol=0)


class Centred(nn.Module):
    """An activation that looks at all neurons."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x - x.mean(-1, keepdim=True))


class Scaled(nn.Module):
    """An activation with a parameter for each neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0, 1, 32, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * self.scale


@pytest.mark.parametrize("activation", [Centred(), Scaled()])
def test_an_activation_that_needs_all_neurons_keeps_them(activation):
    net = copy.deepcopy(NETWORKS["timm"])
    mlp = net.layers[0].blocks[0].mlp
    mlp.act = activation
    with torch.no_grad():
        mlp.fc1.weight[0] = 0
        mlp.fc2.weight[:, 1] = 0
    small = squeeze(net)
    assert small.layers[0].blocks[0].mlp.fc1.out_features == 32
    torch.testing.assert_close(output(small), output(net), rtol=1e-12, atol=0)


def test_a_norm_between_the_layers_keeps_the_neurons():
    net = copy.deepcopy(NETWORKS["timm"])
    mlp = net.layers[0].blocks[0].mlp
    mlp.norm = nn.LayerNorm(32).double()
    mlp.fc2.weight.data[:, 1] = 0
    assert squeeze(net).layers[0].blocks[0].mlp.fc1.out_features == 32


def test_bad_input():
    with pytest.raises(ValueError, match="find_modules"):
        squeeze(nn.Linear(2, 2))
    with torch.device("meta"):
        nowhere = TimmSwin()
    with pytest.raises(TypeError, match="meta"):
        squeeze(nowhere)
