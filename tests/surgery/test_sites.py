"""Activation sites and their neighbours: what structure tells, and what only a pass shows."""

import pytest
import torch
from torch import nn

from paperworks.efficiency import sites as again
from paperworks.surgery import sites as module
from paperworks.surgery.sites import activation_sites, features, freeze, replace_site, restore


def neighbours(model, **options):
    found = activation_sites(model, **options)
    return {s.name: (s.width, s.before, s.after, s.beside, s.adjacent) for s in found}


def test_the_area_has_the_same_objects():
    assert all(getattr(again, name) is getattr(module, name) for name in again.__all__)


# --- structure ---


def test_sequential_through_dropout_and_nesting():
    body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout())
    model = nn.Sequential(body, nn.Sequential(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2))
    want = {"0.1": (4, "0.0", "1.0", None, True), "2": (5, "1.0", "3", None, True)}
    assert neighbours(model) == want
    assert neighbours(model, sample=torch.ones(2, 3)) == want


def test_a_norm_lets_the_width_through_and_no_gain():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2))
    assert neighbours(model) == {"2": (4, "0", None, None, False)}
    assert neighbours(model, sample=torch.ones(2, 3)) == {"2": (4, "0", None, None, False)}


def test_convolutions_have_their_units_in_dimension_one():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    [site] = activation_sites(model)
    assert (site.dim, site.width, site.after, site.adjacent) == (1, 4, "3", False)
    grouped = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    assert activation_sites(grouped)[0].after is None
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert activation_sites(flat)[0].after is None


def test_one_activation_object_at_several_places_has_as_many_sites():
    act = nn.GELU()
    assert list(neighbours(nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 5), act))) == ["1", "3"]


def test_a_block_under_two_names_has_one_site():
    block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert list(neighbours(nn.Sequential(block, block))) == ["0.1"]


def test_sigmoids_are_taken_only_by_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())
    assert list(neighbours(model)) == ["1"]
    assert list(neighbours(model, targets=["3"])) == ["3"]


@pytest.mark.parametrize("sampled", [False, True])
def test_transformers(sampled):
    library = pytest.importorskip("transformers", reason="the networks of that library")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"input_ids": torch.arange(5)[None]}
    llama = library.LlamaForCausalLM(library.LlamaConfig(vocab_size=20, **small))
    p = "model.layers.0.mlp."
    want = {f"{p}act_fn": (24, f"{p}gate_proj", f"{p}down_proj", f"{p}up_proj", True)}
    assert neighbours(llama, **({"sample": ids} if sampled else {})) == want
    gpt2 = library.GPT2Model(library.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20))
    assert neighbours(gpt2, **({"sample": ids} if sampled else {})) == {
        "h.0.mlp.act": (64, "h.0.mlp.c_fc", "h.0.mlp.c_proj", None, True)
    }
    bert = library.BertModel(library.BertConfig(vocab_size=20, **small), add_pooling_layer=False)
    layer = "encoder.layer.0."
    want = (24, f"{layer}intermediate.dense", f"{layer}output.dense", None, True)
    assert neighbours(bert, **({"sample": ids} if sampled else {})) == {
        f"{layer}intermediate.intermediate_act_fn": want
    }


# --- the graph ---


class Odd(nn.Module):
    """Structure says up and down; the forward pass does something else with them."""

    def __init__(self, how):
        super().__init__()
        self.up, self.act, self.down, self.how = nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), how

    def forward(self, x):
        z = self.up(x)
        h = self.act(z)
        if self.how == "residual of z":
            return z + self.down(h)
        if self.how == "residual of h":
            return h + self.down(h)
        if self.how == "square":
            return self.down(h * h)
        return self.down(h)


@pytest.mark.parametrize(
    ("how", "after", "adjacent"),
    [("plain", "down", True), ("residual of z", "down", False), ("residual of h", None, True), ("square", None, True)],
)
def test_a_sample_shows_what_structure_cannot(how, after, adjacent):
    model = Odd(how)
    [site] = activation_sites(model, sample=torch.randn(2, 4))
    assert (site.before, site.after, site.adjacent) == ("up", after, adjacent)
    assert isinstance(model.act, nn.GELU), "the model is left as it was"
    assert all(p.requires_grad for p in model.parameters())
    assert model.training


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.a, self.b = nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.act(self.b(self.act(self.a(x))))


def test_several_widths_at_one_site_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 6\]"):
        activation_sites(Twice(), sample=torch.ones(2, 4))


# --- choosing, freezing, replacing ---


def test_targets():
    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "b": nn.Sequential(nn.Linear(3, 3), nn.ReLU())}
    )
    assert list(neighbours(model, targets=["a.1"])) == ["a.1"]
    assert list(neighbours(model, targets=["1"])) == ["a.1", "b.1"]
    assert list(neighbours(model, targets=r"b\.\d")) == ["b.1"]
    with pytest.raises(ValueError, match=r"near: a\.1"):
        activation_sites(model, targets=["a.2"])


def test_functions_are_named():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(ValueError, match=r"'0\.activation' is a function"):
        activation_sites(nn.Sequential(layer))
    with pytest.warns(UserWarning, match=r"0\.activation"):
        assert list(neighbours(nn.Sequential(layer, nn.Linear(8, 4), nn.ReLU()))) == ["2"]


def test_freeze_and_restore():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    before = freeze(model)
    assert not any(p.requires_grad for p in model.parameters())
    restore(model, before)
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)
    with pytest.raises(ValueError, match="trained"):
        restore(nn.Sequential(model), before)


def test_replace_gives_back_what_was_there():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    old, new = model[1], nn.Tanh()
    assert replace_site(model, "1", new) is old
    assert model[1] is new
    assert not new.training


def test_features_of_layers():
    assert features(nn.Linear(2, 3)) == (2, 3)
    assert features(nn.Conv2d(2, 3, 1)) == (2, 3)
    assert features(nn.LayerNorm(3)) is None
