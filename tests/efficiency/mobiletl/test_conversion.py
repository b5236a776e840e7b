"""A converted network computes what it did, trains what the method trains, and becomes plain again."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paperworks.efficiency.mobiletl import (
    ShiftOnlyNorm2d,
    SignedHardswish,
    SignedReLU,
    find_inverted_residuals,
    mobiletl,
    plan,
    stored_activations,
)
from paperworks.efficiency.mobiletl.freezing import freeze, top_blocks
from paperworks.papers.protocols.mobilenets import mobilenet_v2, mobilenet_v3_small


def images(n: int = 4, size: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(build=mobilenet_v3_small, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A narrow network with statistics that are not those of a new one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build(10, width=0.35, stem_stride=1, dropout=0.0, momentum=0.5).to(dtype)
        with torch.no_grad():
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.weight.uniform_(0.5, 1.5)
                    norm.bias.uniform_(-0.5, 0.5)
            model.train()(images(8, dtype=dtype))
    return model.eval()


@pytest.mark.parametrize("build", [mobilenet_v3_small, mobilenet_v2])
def test_eval_mode_computes_what_it_did(build):
    model, x = network(build, torch.float64), images(dtype=torch.float64)
    before = model(x)
    mobiletl(model, 5)
    torch.testing.assert_close(model.eval()(x), before)


def test_train_mode_differs_by_the_last_norms_alone():
    model, x = network(dtype=torch.float64), images(dtype=torch.float64)
    handle = mobiletl(copy.deepcopy(model), 3)
    for name in handle.block_names:
        plain = model.get_submodule(name).eval()
        [last] = [m for n, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)][-1:]
        last.train()
    torch.testing.assert_close(handle.model.train()(x), model(x))


def test_what_trains():
    model = network()
    handle = mobiletl(model, 2)
    assert handle.block_names == ["features.10", "features.11"]
    assert handle.trained_names == [*handle.block_names, "classifier.0", "classifier.3"]
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[1] for n in names if n.startswith("features")} == {"10", "11"}
    block = {n.removeprefix("features.11.block.") for n in names if n.startswith("features.11.")}
    assert block == {
        *("0.0.weight", "0.1.bias", "1.0.weight", "1.1.bias", "3.0.weight", "3.1.weight", "3.1.bias"),
        *("2.fc1.weight", "2.fc1.bias", "2.fc2.weight", "2.fc2.bias"),
    }
    assert set(map(id, handle.parameters())) == {id(p) for p in model.parameters() if p.requires_grad}
    assert sum(isinstance(m, ShiftOnlyNorm2d) for m in model.modules()) == 4


def test_the_head_trains_where_asked():
    model = network()
    handle = mobiletl(model, 1, train_head=True)
    assert {"features.12.0", "features.12.1"} <= set(handle.trained_names)
    assert model.features[12][1].weight.requires_grad
    assert model.train().features[12][1].training


def test_train_leaves_the_trunk_in_eval():
    model, x = network(), images()
    handle = mobiletl(model, 2)
    still = {k: v.clone() for k, v in model.state_dict().items() if int(k.split(".")[1]) < 10 and "features" in k}
    model.train()
    assert not any(m.training for i in range(10) for m in model.features[i].modules())
    assert not model.features[12][1].training, "the frozen head"
    assert model.features[11].block[3][1].training
    optimizer = torch.optim.SGD(handle.parameters(), 0.1)
    model(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in still.items())
    assert (
        model.features[9](images()[:, :1].expand(-1, model.features[9].block[0][0].in_channels, -1, -1)).grad_fn is None
    )
    model.features.train()
    assert not model.features[0].training
    assert not model.eval().features[11].training


class Reference(torch.autograd.Function):
    """Hard-swish with the slope of the sign rule, written out."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return F.hardswish(z)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


class ReferenceHardswish(nn.Module):
    def forward(self, z):
        return Reference.apply(z)


def test_gradients_are_exact_given_the_sign_rule():
    """Against autograd through the plain network, its inner norms in eval mode, its activations by the sign rule."""
    model, x = network(dtype=torch.float64), images(dtype=torch.float64)
    handle = mobiletl(copy.deepcopy(model), 3)
    for _, block in find_inverted_residuals(model)[-3:]:
        for part in list(block.named_modules()):
            if isinstance(part[1], nn.Hardswish):
                parent, _, key = part[0].rpartition(".")
                setattr(block.get_submodule(parent), key, ReferenceHardswish())
        block.block[-1][1].train()
    model(x).square().sum().backward()
    handle.model.train()(x).square().sum().backward()
    got = {n: p.grad for n, p in handle.model.named_parameters() if p.requires_grad}
    want = dict(model.named_parameters())
    assert len(got) > 20
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name].grad, msg=name)


def test_exact_backward_gives_the_gradients_of_frozen_norms():
    model, x = network(mobilenet_v2, torch.float64), images(dtype=torch.float64)
    handle = mobiletl(copy.deepcopy(model), 17, backward="exact")
    model(x).square().sum().backward()
    handle.model.eval()(x).square().sum().backward()
    want = dict(model.named_parameters())
    for name, parameter in handle.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, want[name].grad, msg=name)


def test_unwrap_gives_the_first_keys_and_the_trained_shifts():
    model, x = network(), images()
    keys = list(model.state_dict())
    model.features[3].requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    handle = mobiletl(model, 4)
    assert list(model.state_dict()) != keys
    optimizer = torch.optim.SGD(handle.parameters(), 0.01)
    F.cross_entropy(model.train()(x), torch.arange(4)).backward()
    optimizer.step()
    shift = model.features[11].block[0][1].bias.clone()
    after = model.eval()(x)
    assert handle.unwrap() is model
    assert list(model.state_dict()) == keys
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model.features[11].block[0][1].bias, shift)
    torch.testing.assert_close(model(x), after)
    assert all(m.training for m in model.train().modules())
    assert handle.unwrap() is model
    mobiletl(model, 4)


def test_unwrap_follows_the_device_and_dtype():
    model = network()
    handle = mobiletl(model, 2)
    model.to(torch.float64)
    handle.unwrap()
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_stay_frozen_and_unwrap(way):
    handle = mobiletl(network(), 2)
    x = images()
    want, other = handle.model.eval()(x), way(handle)
    torch.testing.assert_close(other.model(x), want)
    other.model.train()
    assert not other.model.features[0].training
    assert not handle.model.features[11].training, "the copy's train does not reach the first"
    assert list(other.unwrap().state_dict()) == list(network().state_dict())


def test_a_converted_state_dict_loads_into_a_converted_network():
    first, second = network(), mobilenet_v3_small(10, width=0.35, stem_stride=1)
    mobiletl(first, 3)
    mobiletl(second, 3)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.eval()(images()), first.eval()(images()))


def test_compiled_steps_are_eager_steps():
    block = nn.Sequential(network().features[11])
    handle = mobiletl(block, 1)
    x = torch.randn(4, 32, 3, 3, generator=torch.Generator().manual_seed(0))

    def gradients(model: nn.Module) -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(x).square().sum(), list(handle.parameters())))

    eager = gradients(block)
    for a, b in zip(gradients(torch.compile(block, backend="aot_eager", fullgraph=True)), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_block_alone_without_trunk_or_classifier():
    model = network()
    alone = nn.Sequential(copy.deepcopy(model.features[11]))
    handle = mobiletl(alone, 1)
    assert handle.block_names == ["0"]
    assert handle.frozen_names == []
    whole = copy.deepcopy(model.features[11])
    assert mobiletl(whole, 1).block_names == [""]


def test_other_activations_keep_their_kind():
    model = network()
    handle = mobiletl(model, 10)
    assert isinstance(model.features[2].block[0][1].act, SignedReLU)
    assert isinstance(model.features[11].block[0][1].act, SignedHardswish)
    assert isinstance(model.features[11].block[2].activation, nn.ReLU), "squeeze-excite stays exact"
    assert handle.frozen_names[:2] == ["features.0", "features.1"]


# --- other libraries ---


def test_mobilenet_v2_of_transformers():
    transformers = pytest.importorskip("transformers", reason="its blocks have names of their own")
    model = transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=3)
    )
    keys, x = list(model.state_dict()), images(2)
    before = model.eval()(x).logits
    handle = mobiletl(model, 5)
    assert "classifier" in handle.trained_names
    assert not model.train().mobilenet_v2.conv_1x1.normalization.training
    torch.testing.assert_close(model.eval()(x).logits, before, rtol=1e-4, atol=1e-4)
    model(x, labels=torch.tensor([0, 1])).loss.backward()
    assert model.mobilenet_v2.conv_stem.first_conv.convolution.weight.grad is None
    assert list(handle.unwrap().state_dict()) == keys


def test_efficientnet_of_monai_shares_its_activation():
    nets = pytest.importorskip("monai.networks.nets", reason="its blocks share one activation")
    model = nets.EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=3, num_classes=2).eval()
    keys, x = list(model.state_dict()), images(2, 64)
    before = model(x)
    handle = mobiletl(model, 2)
    assert handle.trained_names[-1] == "_fc"
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    model(x).sum().backward()
    assert model._blocks[-1][0]._bn1.bias.grad.abs().sum() > 0
    assert list(handle.unwrap().state_dict()) == keys


class NormAct(nn.BatchNorm2d):
    """timm's norm: activation inside."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


class InvertedResidual(nn.Module):
    """timm's block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv_pw, self.bn1 = nn.Conv2d(8, width, 1, bias=False), NormAct(width, nn.Hardswish())
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn2 = NormAct(width, nn.Hardswish())
        self.conv_pwl, self.bn3 = nn.Conv2d(width, 8, 1, bias=False), NormAct(8, nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bn3(self.conv_pwl(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))))


def test_timms_norm_is_split():
    model = nn.Sequential(InvertedResidual(), InvertedResidual()).eval()
    keys, x = list(model.state_dict()), torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    before = model(x)
    handle = mobiletl(model, 1)
    assert isinstance(model[1].bn1.act, SignedHardswish)
    assert isinstance(model[0].bn1, NormAct)
    torch.testing.assert_close(model(x), before)
    assert list(handle.unwrap().state_dict()) == keys
    assert isinstance(model[1].bn1, NormAct)


# --- memory ---


@pytest.mark.parametrize("backward", ["sign", "two_bit", "exact"])
def test_the_report_is_what_a_step_on_images_keeps(backward):
    model = network()
    handle = mobiletl(model, 4, backward=backward)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    report = handle.report(16, 4)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert report.bytes == stored_activations(model.train(), images()).bytes
    assert report.bytes == sum(bytes for _, bytes in report.rows)
    outside = [
        n for n, _ in report.rows if n and not n.startswith(("features.8", "features.9", "features.1", "classifier"))
    ]
    assert outside == []


def test_packing_and_the_rule_decide_the_bytes():
    found = {}
    for name, options in {"sign": {}, "two": {"backward": "two_bit"}, "byte": {"pack_bits": False}}.items():
        found[name] = mobiletl(network(), 4, **options).report(16, 4).bytes
    exact = mobiletl(network(), 4, backward="exact").report(16, 4).bytes
    assert found["sign"] < found["two"] < found["byte"] < exact
    plain = network()
    freeze(plain, top_blocks(plain, 4))
    assert exact < stored_activations(plain.train(), images()).bytes


def test_a_plan_takes_the_most_blocks_and_then_the_best_rule():
    model = network()
    keys = list(model.state_dict())
    everything = plan(model, 10**9, 16, 4)
    assert (everything.blocks, everything.backward, len(everything.options)) == (11, "exact", 33)
    for blocks, backward, bytes in (everything.options[4], everything.options[11]):
        chosen = plan(model, bytes, 16, 4)
        assert (chosen.blocks, chosen.backward, chosen.bytes) == (blocks, backward, bytes)
        handle = mobiletl(copy.deepcopy(model), blocks, backward=backward)
        assert handle.report(16, 4).bytes == bytes
    assert list(model.state_dict()) == keys
    with pytest.raises(ValueError, match="at least"):
        plan(model, 1000, 16, 4)


# --- what is refused ---


def test_no_block_says_what_was_looked_for():
    with pytest.raises(ValueError, match="depthwise convolution"):
        mobiletl(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    with pytest.raises(TypeError, match="model"):
        mobiletl("mobilenet")


@pytest.mark.parametrize("blocks", [0, -1, 12, 2.0, True])
def test_a_number_of_blocks_that_is_not_there(blocks):
    with pytest.raises(ValueError, match=r"blocks: got .* 1 to 11"):
        mobiletl(network(), blocks)


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="sign, exact, two_bit"):
        mobiletl(network(), 1, backward="gradient")


def test_a_converted_network_is_not_converted_again():
    model = network()
    mobiletl(model, 1)
    with pytest.raises(ValueError, match="unwrap"):
        mobiletl(model, 2)


@pytest.mark.parametrize("what", ["activation", "inner norm", "last norm"])
def test_a_block_that_cannot_be_converted_changes_nothing(what):
    model = network()
    block = model.features[10].block
    if what == "activation":
        block[1][2] = nn.GELU()
    elif what == "inner norm":
        block[0][1] = nn.GroupNorm(8, block[0][1].num_features)
    else:
        block[3][1] = nn.BatchNorm2d(block[3][1].num_features, affine=False)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"features\.10\.block"):
        mobiletl(model, 2)
    assert list(model.state_dict()) == keys
    assert all(m.training for m in model.train().modules())


def test_one_value_a_channel_at_the_last_norm_is_refused():
    model = network()
    mobiletl(model, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model.train()(images(1))
