"""Replacing activations in plain torch models: sites, sharing, selection, what the new modules take over."""

import copy
import functools
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.surgery.activations import replace_activations


class Scaled(nn.Module):
    """An activation with two scalars, like ASH: what surgery has to place, move and count."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.shift = nn.Parameter(torch.tensor([0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.tanh(x) + self.shift


class Marked(nn.Module):
    """Remembers the module it stands for."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.old_type = type(old)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.fc(x))


class NormAct(nn.BatchNorm2d):
    """The structure of timm's BatchNormAct2d: the activation is a child of the norm layer."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2), nn.Tanh())


def test_the_model_computes_the_new_activation() -> None:
    model = mlp()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.tanh(model[4](torch.tanh(model[2](torch.tanh(model[0](x))))))
    report = replace_activations(model, nn.Tanh)
    assert report.model is model
    assert report.replaced == ["1", "3"]
    assert report.shared == []
    assert report.not_replaceable == []
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish])
def test_default_types(cls: type[nn.Module]) -> None:
    assert replace_activations(nn.Sequential(cls()), Scaled).replaced == ["0"]


@pytest.mark.parametrize("cls", [nn.Tanh, nn.Sigmoid, nn.Softmax, nn.PReLU, nn.LeakyReLU, nn.Identity])
def test_other_types_stay_unless_asked_for(cls: type[nn.Module]) -> None:
    assert replace_activations(nn.Sequential(cls()), Scaled).replaced == []
    assert replace_activations(nn.Sequential(cls()), Scaled, types=cls).replaced == ["0"]


def test_copy_leaves_the_original_alone() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    report = replace_activations(model, Scaled, inplace_model=False)
    assert isinstance(model[1], nn.ReLU)
    assert report.model is not model
    assert isinstance(report.model[1], Scaled)
    assert model.state_dict().keys() == before.keys()


def test_only_the_parameters_of_the_activations_are_added() -> None:
    model = mlp()
    before = dict(model.named_parameters())
    replace_activations(model, Scaled)
    after = dict(model.named_parameters())
    assert set(after) - set(before) == {"1.scale", "1.shift", "3.scale", "3.shift"}
    assert all(after[name] is parameter for name, parameter in before.items())


def test_factory_gets_the_old_module_when_it_asks_for_it() -> None:
    model = nn.Sequential(nn.ReLU(), nn.GELU())
    replace_activations(model, Marked)
    assert [m.old_type for m in model] == [nn.ReLU, nn.GELU]


@pytest.mark.parametrize(
    "factory",
    [
        Scaled,
        nn.PReLU,
        lambda: Scaled(2.0),
        lambda *args: Scaled(*args),
        functools.partial(Scaled, 0.5),
        functools.partial(Scaled, scale=0.5),
    ],
    ids=["class", "torch class", "no argument", "star args", "partial", "partial keyword"],
)
def test_factory_without_required_parameter_is_called_bare(factory) -> None:
    assert replace_activations(nn.Sequential(nn.ReLU()), factory).replaced == ["0"]


def test_factory_that_hands_back_the_old_module_leaves_the_site() -> None:
    model = mlp()
    report = replace_activations(model, lambda old: old if isinstance(old, nn.SiLU) else Scaled())
    assert report.replaced == ["1"]
    assert isinstance(model[3], nn.SiLU)


def test_wrapping_the_old_module_is_no_endless_loop() -> None:
    model = nn.Sequential(nn.ReLU())
    report = replace_activations(model, lambda old: nn.Sequential(old, Scaled()))
    assert report.replaced == ["0"]
    assert isinstance(model[0][0], nn.ReLU)


def test_a_second_call_finds_nothing() -> None:
    model = mlp()
    replace_activations(model, Scaled)
    report = replace_activations(model, Scaled)
    assert (report.replaced, report.shared, report.not_replaceable) == ([], [], [])


def test_root_that_is_an_activation() -> None:
    root = nn.ReLU().eval()
    report = replace_activations(root, Scaled)
    assert report.replaced == [""]
    assert isinstance(report.model, Scaled)
    assert not report.model.training
    assert replace_activations(root, Scaled, include="*").replaced == [""]


def test_activation_inside_a_norm_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.Sequential(nn.Conv2d(4, 4, 3), NormAct(4)))
    report = replace_activations(model, Scaled)
    assert report.replaced == ["1.act", "2.1.act"]
    assert torch.isfinite(model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))).all()


# --- sharing ---


def test_sharing_is_kept_with_one_call_of_the_factory() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.ReLU())
    calls = []
    report = replace_activations(model, lambda: calls.append(1) or Scaled())
    assert report.replaced == ["1", "3", "4"]
    assert report.shared == ["1", "3"]
    assert model[1] is model[3]
    assert model[4] is not model[1]
    assert len(calls) == 2


def test_unshare_splits_the_sites_of_a_sequential() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    report = replace_activations(model, Scaled, unshare=True)
    assert report.replaced == ["1", "3"]
    assert report.shared == []
    assert model[1] is not model[3]


def test_unshare_leaves_parents_with_their_own_forward_as_they_are() -> None:
    class Reversed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for module in reversed(self):
                x = module(x)
            return x

    relu = nn.ReLU()
    model = nn.ModuleDict({"a": Block(relu), "b": Block(relu), "c": Reversed(relu, relu)})
    report = replace_activations(model, Scaled, unshare=True)
    assert report.replaced == report.shared == ["a.act", "b.act", "c.0", "c.1"]
    assert model["a"].act is model["b"].act is model["c"][0]


def test_a_block_under_two_names_is_reported_under_both() -> None:
    block = Block(nn.ReLU())
    model = nn.Sequential(block, block)
    report = replace_activations(model, Scaled, unshare=True)
    assert report.replaced == report.shared == ["0.act", "1.act"]


def test_a_shared_block_is_left_when_one_of_its_names_is_excluded() -> None:
    block = Block(nn.ReLU())
    model = nn.Sequential(block, block, Block(nn.ReLU()))
    assert replace_activations(model, Scaled, exclude="0.*").replaced == ["2.act"]


def test_a_factory_that_always_gives_one_module_is_reported_as_shared() -> None:
    one = Scaled()
    assert replace_activations(mlp(), lambda: one).shared == ["1", "3"]


# --- selection ---


def stages() -> nn.ModuleDict:
    stage = nn.Sequential(Block(nn.ReLU()), Block(nn.ReLU()))
    return nn.ModuleDict({"stem": Block(nn.ReLU()), "layer1": stage, "layer2": copy.deepcopy(stage)})


ALL = ["stem.act", "layer1.0.act", "layer1.1.act", "layer2.0.act", "layer2.1.act"]


@pytest.mark.parametrize(
    ("include", "exclude", "wanted"),
    [
        (None, None, ALL),
        ("*", None, ALL),
        ("layer1.*", None, ALL[1:3]),
        ("layer1", None, ALL[1:3]),
        ("layer?", None, ALL[1:]),
        (["stem*", "layer2.0.act"], None, [ALL[0], ALL[3]]),
        (None, "layer*", ALL[:1]),
        (None, ["*.0.act", "stem"], [ALL[2], ALL[4]]),
        ("layer1", "*.1.*", [ALL[1]]),
        (None, "nothing.like.this", ALL),
        (lambda name, module: name.endswith("1.act") and isinstance(module, nn.ReLU), None, [ALL[2], ALL[4]]),
        (None, lambda name, module: name.startswith("layer"), ALL[:1]),
        ([], None, []),
    ],
)
def test_include_and_exclude(include, exclude, wanted: list[str]) -> None:
    assert replace_activations(stages(), Scaled, include=include, exclude=exclude).replaced == wanted


def test_include_that_matches_nothing_is_named() -> None:
    model = stages()
    with pytest.raises(ValueError, match=r"'layer3\.\*'.*'stem\.act'"):
        replace_activations(model, Scaled, include=["layer1.*", "layer3.*"])
    assert isinstance(model["layer1"][0].act, nn.ReLU)


def test_a_model_without_activations_gives_empty_lists() -> None:
    report = replace_activations(nn.Linear(2, 2), Scaled)
    assert (report.replaced, report.shared, report.not_replaceable) == ([], [], [])


# --- what the new modules take over ---


def test_dtype_and_mode_come_from_the_surroundings() -> None:
    model = nn.ModuleDict({"low": Block(nn.ReLU()).to(torch.bfloat16), "high": Block(nn.ReLU()).double()})
    model["low"].eval()
    replace_activations(model, Scaled)
    assert model["low"].act.scale.dtype == torch.bfloat16
    assert model["high"].act.scale.dtype == torch.float64
    assert not model["low"].act.training
    assert model["high"].act.training


def test_integer_weights_around_a_site_do_not_set_its_dtype() -> None:
    block = Block(nn.ReLU())
    block.fc = nn.Identity()
    block.register_buffer("packed", torch.zeros(3, dtype=torch.uint8))
    model = nn.Sequential(nn.Linear(2, 2).to(torch.float16), block)
    replace_activations(model, Scaled)
    assert block.act.scale.dtype == torch.float16


def test_device_comes_from_the_surroundings() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU())
    replace_activations(model, Scaled)
    assert model[1].scale.device.type == "meta"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([nn.ReLU, nn.GELU, nn.Tanh, nn.Identity, nn.SiLU]), max_size=8), st.data())
def test_replaced_names_are_exactly_the_sites(kinds, data) -> None:
    model: nn.Module = nn.Sequential(*(cls() for cls in kinds))
    prefix = ""
    for depth in range(data.draw(st.integers(0, 3))):
        model = nn.ModuleDict({f"m{depth}": model})
        prefix = f"m{depth}." + prefix
    report = replace_activations(model, Scaled)
    wanted = [f"{prefix}{i}" for i, cls in enumerate(kinds) if cls in (nn.ReLU, nn.GELU, nn.SiLU)]
    assert report.replaced == wanted
    assert all(isinstance(model.get_submodule(name), Scaled) for name in wanted)
    assert sum(p.numel() for p in model.parameters()) == 2 * len(wanted)


def test_save_load_and_compile_after_replacement() -> None:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    compiled(x)
    replace_activations(model, lambda: Scaled(0.3))
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = mlp()
    replace_activations(other, Scaled)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


# --- held but not registered ---


class Holder(nn.Module):
    def __init__(self, **held: object) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        for name, value in held.items():
            setattr(self, name, value)


def own(x: torch.Tensor) -> torch.Tensor:
    return x * x


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ({"activation": F.relu}, ["activation"]),
        ({"f": torch.relu}, ["f"]),
        ({"f": functools.partial(F.gelu, approximate="tanh")}, ["f"]),
        ({"f": own}, []),
        ({"act_fn": own}, ["act_fn"]),
        ({"activation1": own}, ["activation1"]),
        ({"gate_act": lambda x: x}, ["gate_act"]),
        ({"act": torch.tanh}, []),
        ({"act_layer": nn.ReLU}, []),
        ({"activation": nn.GELU}, []),
        ({"activation": "relu"}, []),
        ({"acts": [F.silu, torch.tanh]}, ["acts.0"]),
        ({"acts": {"in": F.silu}}, ["acts.in"]),
        ({"acts": (nn.ReLU(), nn.Tanh())}, ["acts.0"]),
    ],
)
def test_held_activations_are_listed_not_replaced(held: dict, wanted: list[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Holder(**held))
    report = replace_activations(model, Scaled)
    assert report.replaced == []
    assert report.not_replaceable == [f"1.{name}" for name in wanted]
    assert all(getattr(model[1], name) is value for name, value in held.items())


def test_held_functions_go_by_types_and_selection() -> None:
    model = nn.ModuleDict({"a": Holder(act=torch.tanh), "b": Holder(act=F.relu)})
    assert replace_activations(model, Scaled, types=(nn.Tanh,)).not_replaceable == ["a.act"]
    assert replace_activations(model, Scaled, exclude="b").not_replaceable == []
    assert replace_activations(model, Scaled, include="b.*").not_replaceable == ["b.act"]


# --- torch's transformer encoder ---


def encoder(activation: object) -> nn.TransformerEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=activation, batch_first=True)
        return nn.TransformerEncoder(layer, 2).eval()


def test_encoder_with_a_function_is_listed() -> None:
    report = replace_activations(encoder(F.relu), Scaled)
    assert report.replaced == []
    assert report.not_replaceable == ["layers.0.activation", "layers.1.activation"]
    decoder = nn.TransformerDecoderLayer(8, 2, 16)
    assert replace_activations(decoder, Scaled).not_replaceable == ["activation"]


@pytest.mark.parametrize("old", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_fast_path_does_not_keep_the_old_activation(old: type[nn.Module], padded: bool) -> None:
    model = encoder(old())
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    with torch.no_grad():
        before = model(x, src_key_padding_mask=mask)
    report = replace_activations(model, lambda: Scaled(3.0))
    assert report.replaced == ["layers.0.activation", "layers.1.activation"]
    keep = torch.ones(2, 5, dtype=torch.bool) if mask is None else ~mask
    with torch.no_grad():
        inference = model(x, src_key_padding_mask=mask)[keep]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        slow = model(x, src_key_padding_mask=mask)[keep]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(inference, slow)
    assert (inference - before[keep]).abs().max() > 0.05


# --- errors ---


@pytest.mark.parametrize("model", [None, "resnet50", [nn.ReLU()], nn.ReLU])
def test_model_that_is_no_module(model: object) -> None:
    with pytest.raises(TypeError, match="model"):
        replace_activations(model, Scaled)


def test_scripted_model() -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(mlp())
    with pytest.raises(TypeError, match="TorchScript"):
        replace_activations(scripted, Scaled)


@pytest.mark.parametrize(
    "factory",
    [Scaled(), "relu", None, lambda: None, lambda: nn.ReLU, lambda a, b: Scaled(), nn.Threshold, F.relu],
    ids=["instance", "string", "None", "gives None", "gives a class", "two", "Threshold", "F.relu"],
)
def test_bad_factory_leaves_the_model_alone(factory) -> None:
    model = mlp()
    with pytest.raises(TypeError, match=r"factory|must be Tensor|argument 'input'"):
        replace_activations(model, factory)
    assert isinstance(model[1], nn.ReLU)


def test_factory_that_fails_midway_leaves_the_model_alone() -> None:
    def factory(old: nn.Module) -> nn.Module:
        if isinstance(old, nn.SiLU):
            raise RuntimeError("no SiLU here")
        return Scaled()

    model = mlp()
    with pytest.raises(RuntimeError, match="no SiLU"):
        replace_activations(model, factory)
    assert isinstance(model[1], nn.ReLU)


@pytest.mark.parametrize("types", ["ReLU", (nn.ReLU, "SiLU"), (F.relu,), nn.ReLU()])
def test_bad_types(types: object) -> None:
    with pytest.raises(TypeError, match="types"):
        replace_activations(mlp(), Scaled, types=types)


def test_bad_selection() -> None:
    with pytest.raises(TypeError, match="include"):
        replace_activations(mlp(), Scaled, include=[nn.ReLU])
