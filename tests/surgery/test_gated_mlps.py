"""Gated MLPs are found by their parts, in the order of the model, in the architectures that have them."""

import pytest
import torch
from torch import nn

from paperworks.surgery.gated_mlps import find_gated_mlps


class Gated(nn.Module):
    def __init__(self, act_fn=torch.nn.functional.silu):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)
        self.act_fn = act_fn

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_they_come_in_the_order_of_the_model_each_once():
    shared = Gated()
    model = nn.Sequential(Gated(), nn.Linear(4, 4), shared, shared, nn.ModuleDict({"inner": Gated()}))
    found = find_gated_mlps(model)
    assert [name for name, _ in found] == ["0", "2", "4.inner"]
    assert found[1].module is shared


def test_a_model_may_be_one_itself():
    assert [name for name, _ in find_gated_mlps(Gated())] == [""]


def test_what_lacks_a_part_is_none():
    for name in ("gate_proj", "up_proj", "down_proj", "act_fn"):
        module = Gated()
        delattr(module, name)
        with pytest.raises(ValueError, match="gate_proj, up_proj, down_proj and act_fn"):
            find_gated_mlps(module)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2"])
def test_transformers_has_one_a_layer(kind):
    transformers = pytest.importorskip("transformers", reason="the models are those of transformers")
    size = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = getattr(transformers, f"{kind}Config")(**size, **heads, pad_token_id=0)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    assert [name for name, _ in find_gated_mlps(model)] == [f"model.layers.{i}.mlp" for i in range(3)]


def test_a_model_without_them_is_refused_with_what_it_has():
    transformers = pytest.importorskip("transformers", reason="GPT-2 is that of transformers")
    with torch.device("meta"):
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1))
    with pytest.raises(ValueError, match=r"LlamaMLP.*MLPs in it: GPT2MLP"):
        find_gated_mlps(gpt2)
    with pytest.raises(TypeError, match="model: got dict"):
        find_gated_mlps({})
