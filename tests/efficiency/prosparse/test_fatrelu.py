"""FATReLU keeps what reaches its threshold; relufy and set_threshold put it into a model and say so in its config."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("transformers", reason="the models are those of transformers")

from efficiency.prosparse.gated_models import small_llama

from paperworks.efficiency.prosparse import FATReLU, fatrelu, relufy, set_threshold, thresholds
from paperworks.surgery.gated_mlps import find_gated_mlps

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_the_threshold_itself_is_kept_and_nothing_is_subtracted():
    x = torch.tensor([-1.0, 0.0, 0.25, 0.5, 0.75], requires_grad=True)
    y = FATReLU(0.5)(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 0.0, 0.5, 0.75]
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    threshold=st.sampled_from([0.0, 0.25, 1.0]),
    by_channel=st.booleans(),
    contiguous=st.booleans(),
)
def test_it_is_equation_3_for_any_tensor(shape, dtype, threshold, by_channel, contiguous):
    x = torch.randn([*shape, 3] if contiguous else [3, *shape], dtype=torch.float32).to(dtype)
    x = x if contiguous else x.movedim(0, -1)
    t = torch.tensor([threshold, 0.5, 0.0]) if by_channel else threshold
    expected = torch.where(x >= torch.as_tensor(t), x, torch.zeros((), dtype=dtype))
    y = FATReLU(t, dtype=dtype)(x)
    assert y.dtype == dtype
    assert torch.equal(y, expected)


def test_at_zero_it_is_relu_and_nan_stays():
    x = torch.randn(1000)
    assert torch.equal(fatrelu(x, 0.0), torch.relu(x))
    assert fatrelu(torch.tensor([float("nan")]), 0.1).isnan().all()


def test_it_lives_in_torch():
    layer = FATReLU(torch.tensor([0.1, 0.2]))
    other = FATReLU(torch.zeros(2))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 2)
    assert torch.equal(other(x), layer(x))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.threshold, layer.threshold)
    jacobian = torch.func.vmap(torch.func.grad(lambda row: layer(row).sum()))(x)
    assert torch.equal(jacobian, (x >= layer.threshold).float())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(nn.Linear(2, 2)(x)).dtype == torch.bfloat16
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))
    assert FATReLU(0.5, device="meta").threshold.is_meta
    assert "0.25" in repr(FATReLU(0.25))


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, -1e-9]), torch.zeros(2, 2)])
def test_a_bad_threshold_is_refused(bad):
    with pytest.raises(ValueError, match="threshold: got"):
        FATReLU(bad)


def test_relufy_replaces_every_activation_and_describes_it():
    model = small_llama().to(torch.bfloat16).eval()
    activation = model.model.layers[0].mlp.act_fn
    assert relufy(model) is model
    placed = [mlp.module.act_fn for mlp in find_gated_mlps(model)]
    assert all(isinstance(one, FATReLU) and not one.training for one in placed)
    assert all(one.threshold.dtype == torch.bfloat16 for one in placed)
    assert len({id(one) for one in placed}) == 3
    assert activation not in placed
    assert model.config.hidden_act == "relu"
    relufy(model, 0.01)
    assert [mlp.module.act_fn for mlp in find_gated_mlps(model)] == placed, "a second call only moves the threshold"
    assert (model.config.hidden_act, model.config.hidden_act_param) == ("fatrelu", 0.01)
    relufy(model, 0.0)
    assert model.config.hidden_act == "relu"


def test_the_relufied_mlp_computes_equation_1():
    model = relufy(small_llama(), 0.2)
    mlp, x = model.model.layers[1].mlp, torch.randn(5, 16)
    gate = x @ mlp.gate_proj.weight.T
    x1 = torch.where(gate >= 0.2, gate, 0) * (x @ mlp.up_proj.weight.T)
    torch.testing.assert_close(mlp(x), x1 @ mlp.down_proj.weight.T)


def test_a_shared_activation_and_one_that_is_a_function_are_replaced():
    model = small_llama()
    shared = nn.SiLU()
    for layer in model.model.layers[:2]:
        layer.mlp.act_fn = shared
    del model.model.layers[2].mlp.act_fn
    model.model.layers[2].mlp.act_fn = nn.functional.silu
    relufy(model)
    set_threshold(model, {0: 0.5})
    assert [float(value) for value in thresholds(model)] == [0.5, 0.0, 0.0]


def test_layers_that_are_not_named_keep_their_threshold():
    model = relufy(small_llama(), 0.01)
    set_threshold(model, {1: 0.25})
    assert [float(value) for value in thresholds(model)] == pytest.approx([0.01, 0.25, 0.01])
    assert model.config.hidden_act_param == [0.01, 0.25, 0.01]
    set_threshold(model, {2: torch.full((24,), 0.5)})
    assert [value.ndim for value in thresholds(model)] == [0, 0, 1]
    assert model.config.hidden_act_param is None
    set_threshold(model, 0.0)
    assert model.config.hidden_act == "relu"


def test_gemma_names_its_activation_differently():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=8, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = Gemma2ForCausalLM(config)
    relufy(model.to_empty(device="cpu"))
    assert config.hidden_activation == "relu"


def test_what_cannot_be_set_changes_nothing():
    model = small_llama()
    with pytest.raises(ValueError, match="call relufy first"):
        set_threshold(model, 0.1)
    relufy(model, 0.5)
    for bad, match in (
        ({0: 0.1, 3: 0.1}, "wanted 0 to 2"),
        ({0: 0.1, -1: 0.1}, "wanted 0 to 2"),
        ({0: 0.1, 1: -1.0}, "numbers >= 0"),
        ({0: 0.1, 1: torch.zeros(23)}, "23 for the 24 channels"),
        (-0.1, "numbers >= 0"),
    ):
        with pytest.raises(ValueError, match=match):
            set_threshold(model, bad)
        assert [float(value) for value in thresholds(model)] == [0.5] * 3
    with pytest.raises(ValueError, match="without gated MLPs"):
        relufy(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="numbers >= 0"):
        relufy(model, -0.1)
