"""SparseGatedMLP stands in for the gated MLPs of transformers: same function, same state_dict, less memory read."""

import copy
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the models are those of transformers")

from efficiency.prosparse.gated_models import small_llama

from paperworks.efficiency.prosparse import relufy, set_threshold
from paperworks.efficiency.prosparse import sparse_mlp as module
from paperworks.efficiency.prosparse.fatrelu import FATReLU
from paperworks.efficiency.prosparse.predictor import ActivationPredictor
from paperworks.efficiency.prosparse.sparse_mlp import SparseGatedMLP, sparsify

D, D_FF = 24, 60


def dense_mlp(kind="Llama", bias=False, threshold=0.05, dtype=torch.float32, seed=0):
    """A small MLP of transformers with FATReLU in it."""
    import importlib

    package = importlib.import_module(f"transformers.models.{kind.lower()}")
    config = getattr(package, f"{kind}Config")(hidden_size=D, intermediate_size=D_FF, num_attention_heads=2)
    config.mlp_bias = bias
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mlp = getattr(importlib.import_module(f"{package.__name__}.modeling_{kind.lower()}"), f"{kind}MLP")(config)
        for parameter in mlp.parameters():
            nn.init.normal_(parameter, std=0.3)
    mlp.act_fn = FATReLU(threshold)
    return mlp.to(dtype).eval()


def tokens(*leading, dtype=torch.float32, seed=1):
    return torch.randn(*leading, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class QuantisedLinear(nn.Module):
    """As libraries that quantise have them: integers and a scale."""

    def __init__(self, rows, columns):
        super().__init__()
        self.register_buffer("weight", torch.ones(columns, rows, dtype=torch.int8))

    def forward(self, x):
        return x @ self.weight.to(x).t()


class SparseCalls:
    """How often the sparse path was taken."""

    def __init__(self, monkeypatch):
        self.count = 0
        plain = module.sparse_ffn

        def counted(*args, **kwargs):
            self.count += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, "sparse_ffn", counted)


@pytest.fixture
def sparse_calls(monkeypatch):
    return SparseCalls(monkeypatch)


@pytest.mark.parametrize(
    ("kind", "bias"), [("Llama", False), ("Llama", True), ("Mistral", False), ("Qwen2", False), ("Gemma", False)]
)
def test_is_the_dense_mlp(kind, bias, sparse_calls):
    mlp = dense_mlp(kind, bias)
    sparse = SparseGatedMLP.from_dense(mlp)
    for x in (tokens(), tokens(1, 1), tokens(2, 3), tokens(4, 5)[:, ::2][:2], tokens(3, 30), tokens(0, 4)):
        with torch.no_grad():
            torch.testing.assert_close(sparse(x), mlp(x), rtol=1e-5, atol=1e-5)
    assert sparse_calls.count == 4


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.03), (torch.float16, 4e-3)]
)
def test_other_dtypes(dtype, tolerance, sparse_calls):
    mlp = dense_mlp(dtype=dtype)
    x = tokens(2, 2, dtype=dtype)
    with torch.no_grad():
        y, wanted = SparseGatedMLP.from_dense(mlp)(x), mlp(x)
    torch.testing.assert_close(y, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    assert sparse_calls.count == 1


def test_more_than_max_tokens_go_the_dense_way(sparse_calls):
    sparse = SparseGatedMLP.from_dense(dense_mlp(), max_tokens=3)
    for leading, taken in (((3,), 1), ((2, 2), 1), ((1, 3), 2), ((100,), 2)):
        with torch.no_grad():
            sparse(tokens(*leading))
        assert sparse_calls.count == taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prompt_in_half_precision_multiplies_with_the_usual_layout(dtype, monkeypatch):
    """A CPU without instructions for it takes tens of times as long for a transposed weight."""
    mlp, layouts = dense_mlp(dtype=dtype), []
    plain = torch.nn.functional.linear

    def watched(x, weight, bias=None):
        layouts.append(weight.is_contiguous())
        return plain(x, weight, bias)

    sparse, x = SparseGatedMLP.from_dense(mlp), tokens(30, dtype=dtype)
    with torch.no_grad():
        wanted = mlp(x)
        monkeypatch.setattr(torch.nn.functional, "linear", watched)
        assert torch.equal(sparse(x), wanted)
    assert layouts == [True, True, True]


def test_threshold_of_its_own_and_given():
    x, mlp = tokens(2), dense_mlp(threshold=0.3)
    sparse = SparseGatedMLP.from_dense(mlp)
    assert float(sparse.act_fn.threshold) == pytest.approx(0.3)
    channels = torch.rand(D_FF, generator=torch.Generator().manual_seed(2))
    given = SparseGatedMLP.from_dense(mlp, channels)
    mlp.act_fn = FATReLU(channels)
    with torch.no_grad():
        torch.testing.assert_close(given(x), mlp(x), rtol=1e-5, atol=1e-5)
    mlp.act_fn = nn.ReLU()
    assert float(SparseGatedMLP.from_dense(mlp).act_fn.threshold) == 0
    mlp.act_fn = nn.SiLU()
    assert float(SparseGatedMLP.from_dense(mlp, 0.02).act_fn.threshold) == pytest.approx(0.02)
    with pytest.raises(ValueError, match="SiLU"):
        SparseGatedMLP.from_dense(mlp)


def test_the_dense_mlp_stays_as_it_is_and_only_w_down_is_copied():
    mlp = dense_mlp()
    before = {name: p.clone() for name, p in mlp.named_parameters()}
    sparse = SparseGatedMLP.from_dense(mlp, 1.0)
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in mlp.named_parameters())
    assert float(mlp.act_fn.threshold) == pytest.approx(0.05)
    assert not any(p.requires_grad for p in sparse.parameters())
    shared = [
        getattr(sparse, name).weight.data_ptr() == getattr(mlp, name).weight.data_ptr()
        for name in ("gate_proj", "up_proj", "down_proj")
    ]
    assert shared == [True, True, False]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in sparse.parameters()}
    assert sum(storages.values()) == 3 * D * D_FF * 4
    assert sparse.W_down_t.is_contiguous()
    assert torch.equal(sparse.W_down_t, mlp.down_proj.weight.t())


def test_state_dict_is_that_of_the_dense_mlp_and_goes_both_ways():
    mlp, x = dense_mlp(bias=True), tokens(2)
    sparse = SparseGatedMLP.from_dense(dense_mlp(bias=True, seed=5, threshold=0.0))
    assert list(sparse.state_dict()) == list(mlp.state_dict())
    for assign in (False, True):
        sparse.load_state_dict(copy.deepcopy(mlp.state_dict()), assign=assign)
        assert sparse.W_down_t.is_contiguous()
        with torch.no_grad():
            torch.testing.assert_close(sparse(x), mlp(x), rtol=1e-5, atol=1e-5)
    back = dense_mlp(bias=True, seed=9, threshold=0.9)
    back.load_state_dict(sparse.state_dict())
    with torch.no_grad():
        assert torch.equal(back(x), mlp(x))


def test_copies_keep_the_layout():
    sparse, x = SparseGatedMLP.from_dense(dense_mlp(), predictor=ActivationPredictor(D, D_FF, 4)), tokens(1)
    with torch.no_grad():
        wanted = sparse(x)
        for other in (
            copy.deepcopy(sparse),
            pickle.loads(pickle.dumps(sparse)),
            copy.deepcopy(sparse).double().float(),
        ):
            assert other.W_down_t.is_contiguous()
            assert torch.equal(other(x), wanted)
        assert copy.deepcopy(sparse).to(torch.bfloat16).W_down_t.is_contiguous()
        meta = copy.deepcopy(sparse).to("meta")
        assert meta(x.to("meta")).shape == x.shape


def test_gradients_and_autocast_take_the_dense_path(sparse_calls):
    mlp, x = dense_mlp(dtype=torch.float64), tokens(2, dtype=torch.float64).requires_grad_()
    sparse = SparseGatedMLP.from_dense(mlp)
    got, wanted = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (sparse, mlp))
    torch.testing.assert_close(got, wanted)
    sparse.requires_grad_(True)
    sparse(x.detach()).sum().backward()
    mlp(x.detach()).sum().backward()
    torch.testing.assert_close(sparse.down_proj.weight.grad, mlp.down_proj.weight.grad)
    mlp, x = dense_mlp(), tokens(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(SparseGatedMLP.from_dense(mlp)(x), mlp(x))
    assert sparse_calls.count == 0


def test_a_predictor_that_is_right_changes_nothing_and_what_it_misses_is_lost():
    mlp, x = dense_mlp(threshold=0.1), tokens(2)
    sparse = SparseGatedMLP.from_dense(mlp)
    oracle = nn.Linear(D, D_FF, bias=True)
    with torch.no_grad():
        oracle.weight.copy_(mlp.gate_proj.weight)
        oracle.bias.fill_(-0.09)
        wanted = sparse(x)
        sparse.predictor = oracle
        torch.testing.assert_close(sparse(x), wanted, rtol=1e-5, atol=1e-5)
        oracle.bias.fill_(-0.5)
        x1 = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * (oracle(x) > 0)
        torch.testing.assert_close(sparse(x), mlp.down_proj(x1), rtol=1e-5, atol=1e-5)
        many = tokens(30)
        assert torch.equal(sparse(many), SparseGatedMLP.from_dense(mlp)(many))  # the dense path is exact
        sparse.gate_proj.weight.fill_(torch.nan)
        oracle.bias.fill_(-1e9)
        assert torch.equal(sparse(x), torch.zeros_like(x))  # no row of gate_proj was read


def test_compiles_into_one_graph():
    sparse, x = SparseGatedMLP.from_dense(dense_mlp(), max_tokens=2), tokens(1, 2)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), sparse(x))
        torch.testing.assert_close(compiled(tokens(7)), sparse(tokens(7)))


def test_what_cannot_be_converted_is_named():
    mlp = dense_mlp()
    quantised = copy.deepcopy(mlp)
    quantised.up_proj = QuantisedLinear(D, D_FF)
    with pytest.raises(TypeError, match=r"up_proj: got .*QuantisedLinear"):
        SparseGatedMLP.from_dense(quantised)

    class Adapted(nn.Linear):
        pass

    adapted = copy.deepcopy(mlp)
    adapted.down_proj = Adapted(D_FF, D)
    with pytest.raises(TypeError, match=r"down_proj: got .*Adapted"):
        SparseGatedMLP.from_dense(adapted)

    class TwiceAsMuch(type(mlp)):
        def forward(self, x):
            return 2 * super().forward(x)

    more = copy.deepcopy(mlp)
    more.__class__ = TwiceAsMuch
    with pytest.raises(ValueError, match="computes more"):
        SparseGatedMLP.from_dense(more)
    with pytest.raises(ValueError, match="mlp: got Linear"):
        SparseGatedMLP.from_dense(nn.Linear(2, 2))
    narrow = copy.deepcopy(mlp)
    narrow.up_proj = nn.Linear(D, D_FF - 1)
    with pytest.raises(ValueError, match="wanted \\(d_ff, d\\) twice"):
        SparseGatedMLP.from_dense(narrow)
    for options, message in (
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": torch.zeros(D_FF - 1)}, "threshold"),
        ({"backend": "cuda"}, "backend"),
        ({"max_tokens": -1}, "max_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            SparseGatedMLP.from_dense(mlp, **options)


@pytest.fixture
def llama():
    return relufy(small_llama(), 0.02).eval()


def test_a_sparse_model_generates_what_the_dense_one_does(llama, sparse_calls):
    prompt = torch.arange(11)[None]
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    wanted = llama.generate(prompt, **options)
    sparse = sparsify(copy.deepcopy(llama))
    assert torch.equal(sparse.generate(prompt, **options), wanted)
    assert sparse_calls.count == 3 * 7  # the prompt of 11 tokens is dense, seven tokens are decoded in three layers
    with torch.no_grad():
        torch.testing.assert_close(sparse(prompt).logits, llama(prompt).logits, rtol=1e-4, atol=1e-4)


def test_a_sparse_model_is_saved_and_loaded_as_a_dense_one(llama, tmp_path):
    from safetensors.torch import load_file

    sparse = sparsify(copy.deepcopy(llama))
    assert list(sparse.state_dict()) == list(llama.state_dict())
    sparse.save_pretrained(tmp_path)
    saved = load_file(next(tmp_path.glob("*.safetensors")))
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(saved[name], llama.state_dict()[name])


def test_set_threshold_reaches_a_sparse_model(llama):
    sparse = sparsify(llama)
    set_threshold(sparse, {1: 1e9})
    mlp = sparse.model.layers[1].mlp
    with torch.no_grad():
        assert torch.equal(mlp(torch.ones(1, 16)), torch.zeros(1, 16))
    again = sparsify(sparse, 0.5, max_tokens=2)
    assert [layer.mlp.max_tokens for layer in again.model.layers] == [2, 2, 2]
    assert again.model.layers[0].mlp.W_down_t.data_ptr() == sparse.model.layers[0].mlp.W_down_t.data_ptr()


def test_shared_mlps_stay_shared_and_a_bare_mlp_is_returned_converted(llama):
    llama.model.layers[2].mlp = llama.model.layers[0].mlp
    sparse = sparsify(llama)
    mlps = [layer.mlp for layer in sparse.model.layers]
    assert mlps[0] is mlps[2]
    assert mlps[0] is not mlps[1]
    assert all(isinstance(mlp, SparseGatedMLP) for mlp in mlps)
    assert isinstance(sparsify(dense_mlp()), SparseGatedMLP)


def test_predictors_go_to_the_layers_in_order(llama):
    predictors = [ActivationPredictor(16, 24, 4) for _ in range(3)]
    sparse = sparsify(llama, predictors=predictors)
    assert [layer.mlp.predictor for layer in sparse.model.layers] == predictors
    with pytest.raises(ValueError, match="predictors: got 2, wanted 3"):
        sparsify(sparse, predictors=predictors[:2])


def test_nothing_changes_where_one_layer_cannot_be_converted(llama):
    llama.model.layers[2].mlp.gate_proj = QuantisedLinear(16, 24)
    with pytest.raises(TypeError, match=r"model.layers.2.mlp: gate_proj"):
        sparsify(llama)
    assert not any(isinstance(m, SparseGatedMLP) for m in llama.modules())
    with pytest.raises(ValueError, match="without gated MLPs"):
        sparsify(nn.Sequential(nn.Linear(2, 2)))
