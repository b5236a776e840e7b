"""The sparse feed-forward network is the dense one with FATReLU, whatever is active, and reads nothing else."""

import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from paperworks import native
from paperworks.efficiency.prosparse.sparse_ffn import ffn_weights, gate_product, sparse_down, sparse_ffn, sparse_up

module = importlib.import_module(
    "paperworks.efficiency.prosparse.sparse_ffn"
)  # the package has a function of this name
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
HALF = (torch.bfloat16, torch.float16)


def parts(d, d_ff, leading=(), dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (*leading, d), "gate": (*leading, d_ff), "W_up": (d_ff, d), "W_down_t": (d_ff, d),
        "up_bias": (d_ff,), "down_bias": (d,),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=make, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def dense(x, gate, W_up, W_down_t, threshold=0.0, up_bias=None, down_bias=None):
    """In float64; the threshold as the gate's dtype has it."""
    threshold = torch.as_tensor(threshold, dtype=None if isinstance(threshold, torch.Tensor) else torch.float64)
    threshold = (threshold if threshold.ndim else threshold.to(gate.dtype)).double()
    x, gate, W_up, W_down_t = (t.double() for t in (x, gate, W_up, W_down_t))
    up = x @ W_up.T + (0 if up_bias is None else up_bias.double())
    x1 = torch.where(gate >= threshold, gate, 0) * up
    return x1 @ W_down_t + (0 if down_bias is None else down_bias.double())


def assert_close(got, wanted, dtype, terms=None):
    """To rounding of what is summed: `terms`, or else the result."""
    assert got.dtype == dtype
    terms = wanted if terms is None else terms
    scale = max(1e-300, float(terms.abs().max())) if wanted.numel() else 1
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=TOLERANCES[dtype] * scale)


@pytest.fixture(params=["C", "tensor operations"])
def engine(request, monkeypatch):
    if request.param == "tensor operations":
        monkeypatch.setenv("PAPERWORKS_NATIVE", "0")
    elif native._compiler() == ():
        pytest.skip("no C compiler")
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.89, 0.99, 1.0])
def test_exact_at_every_sparsity(engine, dtype, sparsity):
    p = parts(96, 400, (1,), dtype)
    ranked = p["gate"].double().abs().flatten().sort().values
    p["gate"] = p["gate"].abs()
    threshold = float(ranked[int(sparsity * 400)]) if sparsity < 1 else 1e4
    zeros = (p["gate"].double() < threshold).double().mean()
    assert zeros == pytest.approx(sparsity, abs=0.01)
    assert_close(sparse_ffn(**p, threshold=threshold), dense(**p, threshold=threshold), dtype)


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 70),
    d_ff=st.integers(1, 140),
    leading=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(list(TOLERANCES)),
    threshold=st.sampled_from([0.0, 0.01, 1.0, 50.0, "channels"]),
    biases=st.booleans(),
    step=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_any_shape_dtype_and_layout(d, d_ff, leading, dtype, threshold, biases, step, seed):
    p = parts(step * d, d_ff, tuple(leading), dtype, seed)
    p = {n: t if n in ("gate", "up_bias") else t[..., ::step] for n, t in p.items()}  # with gaps where step is 2
    p["x"] = p["x"].transpose(0, 1).contiguous().transpose(0, 1) if p["x"].ndim > 2 else p["x"]
    if not biases:
        del p["up_bias"], p["down_bias"]
    if threshold == "channels":
        threshold = torch.rand(d_ff, generator=torch.Generator().manual_seed(seed))
    wanted = dense(**p, threshold=threshold)
    terms = dense(**{n: t if n == "gate" else t.abs() for n, t in p.items()}, threshold=threshold)
    for backend in ("auto", "torch"):
        assert_close(sparse_ffn(**p, threshold=threshold, backend=backend), wanted, dtype, terms)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_threshold_itself_is_active(engine, dtype):
    p = parts(8, 5, (1,), dtype)
    p["gate"] = torch.tensor([[0.01, 0.0099, -1.0, 0.02, 0.0]], dtype=dtype)
    ones = p | {"W_up": torch.zeros_like(p["W_up"]), "up_bias": torch.ones_like(p["up_bias"])}
    ones["W_down_t"], ones["down_bias"] = torch.eye(5, 8, dtype=dtype), torch.zeros(8, dtype=dtype)
    active = (sparse_ffn(**ones, threshold=0.01)[0, :5] != 0).tolist()
    assert active == [True, False, False, True, False]


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_no_active_row_leaves_the_bias(engine, tokens):
    p = parts(24, 30, (tokens,), torch.float32)
    y = sparse_ffn(**p, threshold=1e9)
    assert torch.equal(y, p["down_bias"].expand(tokens, 24))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rows_that_no_token_needs_are_not_read(engine, dtype):
    p = parts(40, 200, (3,), dtype)
    wanted = sparse_ffn(**p, threshold=0.8)
    idle = (p["gate"] < 0.8).all(0)
    assert 20 < idle.sum() < 180
    p["W_up"][idle], p["W_down_t"][idle] = torch.nan, torch.inf
    assert torch.equal(sparse_ffn(**p, threshold=0.8), wanted)


def test_a_token_does_not_see_the_rows_of_another(engine):
    p = parts(40, 200, (8,), torch.float32)
    together = sparse_ffn(**p, threshold=0.8)
    for token in range(8):
        alone = sparse_ffn(**p | {"x": p["x"][token], "gate": p["gate"][token]}, threshold=0.8)
        torch.testing.assert_close(together[token], alone, rtol=1e-5, atol=1e-5)


def test_nan_shows_and_infinity_is_kept(engine):
    p = parts(16, 32, (2,), torch.float32)
    p["gate"][0, 3] = torch.nan
    y = sparse_ffn(**p, threshold=0.5)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()
    p["gate"][0, 3] = torch.inf
    assert sparse_ffn(**p, threshold=0.5)[0].isinf().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_result_does_not_depend_on_the_threads(dtype):
    p, before = parts(256, 2000, (2,), dtype), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append((sparse_ffn(**p, threshold=0.5), gate_product(p["x"], p["W_up"], p["up_bias"])))
    finally:
        torch.set_num_threads(before)
    if module._engine("auto", p["x"], 1) == "native":
        assert all(torch.equal(a, b) for pair in results[1:] for a, b in zip(pair, results[0], strict=True))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("leading", [(), (2, 3), (20,), (0,)])
def test_steps_one_by_one(engine, dtype, leading):
    p = parts(33, 50, leading, dtype)
    x1 = sparse_up(p["x"], p["gate"], p["W_up"], 0.5, up_bias=p["up_bias"])
    up = p["x"].double() @ p["W_up"].double().T + p["up_bias"].double()
    assert_close(x1, torch.where(p["gate"] >= 0.5, p["gate"].double() * up, 0), dtype)
    assert torch.equal(x1 == 0, p["gate"] < 0.5)
    y = sparse_down(x1, p["W_down_t"], down_bias=p["down_bias"])
    assert_close(y, x1.double() @ p["W_down_t"].double() + p["down_bias"].double(), dtype)
    idle = (x1.reshape(-1, 50) == 0).all(0)
    p["W_up"][idle], p["W_down_t"][idle] = torch.nan, torch.nan
    assert torch.equal(sparse_up(p["x"], p["gate"], p["W_up"], 0.5, up_bias=p["up_bias"]), x1)
    assert torch.equal(sparse_down(x1, p["W_down_t"], down_bias=p["down_bias"]), y)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (20,), (0,)])
def test_gate_product(engine, dtype, leading):
    p = parts(33, 50, leading, dtype)
    exact = p["x"].double() @ p["W_up"].double().T + p["up_bias"].double()
    gate = gate_product(p["x"], p["W_up"], p["up_bias"])
    assert_close(gate, exact, dtype)
    named = torch.rand(exact.shape, generator=torch.Generator().manual_seed(1)) > 0.7
    listed = gate_product(p["x"], p["W_up"], p["up_bias"], named)
    assert (listed[~named] == -torch.inf).all()
    assert_close(listed[named], exact[named], dtype)


def test_rows_that_no_predictor_names_are_not_read(engine):
    p = parts(20, 60, (2,), torch.float32)
    named = torch.zeros(2, 60, dtype=torch.bool)
    named[:, ::7] = True
    p["W_up"][~named[0]] = torch.nan
    assert not gate_product(p["x"], p["W_up"], candidates=named).isnan().any()


def test_gradients_are_those_of_the_dense_formula():
    p = {name: t.requires_grad_() for name, t in parts(6, 9, (2,)).items()}
    got = torch.autograd.grad(sparse_ffn(**p, threshold=0.3).sum(), list(p.values()))
    wanted = torch.autograd.grad(dense(**p, threshold=0.3).sum(), list(p.values()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
    x1 = sparse_up(p["x"], p["gate"], p["W_up"], 0.3, up_bias=p["up_bias"])
    steps = sparse_down(x1, p["W_down_t"], down_bias=p["down_bias"])
    for a, b in zip(torch.autograd.grad(steps.sum(), list(p.values())), wanted, strict=True):
        torch.testing.assert_close(a, b)
    gate = gate_product(p["x"], p["W_up"], p["up_bias"])
    torch.testing.assert_close(torch.autograd.grad(gate.sum(), p["x"])[0], p["W_up"].sum(0).expand(2, 6))


def test_transforms_of_torch_func():
    p = parts(6, 9, (4,))
    fixed = p["W_up"], p["W_down_t"]
    rows = torch.func.vmap(lambda x, gate: sparse_ffn(x, gate, *fixed, 0.3))(p["x"], p["gate"])
    torch.testing.assert_close(rows, dense(p["x"], p["gate"], *fixed, 0.3))
    _, slope = torch.func.jvp(lambda x: sparse_ffn(x, p["gate"], *fixed, 0.3), (p["x"],), (p["x"],))
    torch.testing.assert_close(slope, rows)  # linear in x
    assert sparse_ffn(**{name: t.to("meta") for name, t in p.items()}).shape == (4, 6)


def test_compiles_into_one_graph():
    p = parts(32, 100, (2,), torch.float32)
    named = p["gate"] > 0

    def network(p, threshold):
        gate = gate_product(p["x"], p["W_up"], candidates=named)
        y = sparse_ffn(**p | {"gate": gate}, threshold=threshold)
        return y + sparse_down(sparse_up(y, gate, p["W_up"], threshold), p["W_down_t"])

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for threshold in (0.2, torch.rand(100)):
        torch.testing.assert_close(compiled(p, threshold), network(p, threshold))


def test_operators_keep_their_promises_to_the_compiler():
    p = parts(8, 20, (2, 3), torch.float32)
    t = torch.tensor(0.3)
    torch.library.opcheck(module._gate_operator, (p["x"], p["W_up"], None, None, "auto"))
    torch.library.opcheck(module._down_operator, (p["gate"], p["W_down_t"], p["down_bias"], "auto"))
    operands = (p["x"], p["gate"], p["W_up"], p["W_down_t"], t, p["up_bias"], None, "auto")
    torch.library.opcheck(module._ffn_operator, operands)


def test_autocast_leaves_the_dtype_alone():
    p = parts(32, 100, (2,), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        results = [sparse_ffn(**p, threshold=0.2, backend=backend) for backend in ("auto", "torch")]
    for y in results:
        assert_close(y, dense(**p, threshold=0.2), torch.float32)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.gathered = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index_select.default and args[0].ndim == 2:
            self.gathered += out.numel()
        if "embedding_bag" in func._schema.name:
            self.gathered += args[1].numel() * args[0].shape[1]
        return out


def test_a_dispatch_mode_sees_the_weights_that_are_read():
    p = parts(16, 500, (1,), torch.float32)
    with Calls() as calls:
        sparse_ffn(**p, threshold=1.0)
    active = int((p["gate"] >= 1).sum())
    assert calls.gathered == 2 * 16 * active
    read, _ = ffn_weights(16, 500, 1 - active / 500)
    assert calls.gathered + 16 * 500 == pytest.approx(read)


def test_weights_read_at_the_published_sparsity():
    for d, d_ff, sparsity, share in ((4096, 11008, 0.8932, 40.45), (5120, 13824, 0.8880, 40.80)):
        read, total = ffn_weights(d, d_ff, sparsity)
        assert 100 * read / total == pytest.approx(share, abs=0.005)
        assert total == 3 * d * d_ff
    assert ffn_weights(3, 5, 1.0) == (15, 45)
    assert ffn_weights(3, 5, 0.0) == (45, 45)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_summed_in_float32(dtype):
    d_ff = 4096
    p = {
        "x": torch.ones(1, 1, dtype=dtype),
        "gate": torch.ones(1, d_ff, dtype=dtype),
        "W_up": torch.ones(d_ff, 1, dtype=dtype),
        "W_down_t": torch.ones(d_ff, 1, dtype=dtype),
    }
    assert float(sparse_ffn(**p)) == d_ff  # summed in bfloat16 it would stop at 256, in float16 at 2048


def test_what_does_not_fit_is_named():
    p = parts(6, 9, (2,))
    wrong = {
        "gate": p["gate"][:, :8],
        "W_down_t": p["W_down_t"].T,
        "up_bias": p["down_bias"],
        "down_bias": p["up_bias"],
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            sparse_ffn(**p | {name: value})
    with pytest.raises(ValueError, match="x, weight"):
        sparse_ffn(**p | {"x": p["x"][:, :5]})
    for threshold in (
        -0.1,
        torch.tensor(-0.1),
        torch.full((9,), -1.0),
        torch.zeros(8),
        torch.zeros(1, 9),
        float("nan"),
    ):
        with pytest.raises(ValueError, match="threshold"):
            sparse_ffn(**p, threshold=threshold)
    with pytest.raises(ValueError, match="backend: got 'cuda'"):
        sparse_ffn(**p, backend="cuda")
    with pytest.raises(TypeError, match="gate"):
        sparse_ffn(**p | {"gate": p["gate"].float()})
    with pytest.raises(TypeError, match="x"):
        sparse_ffn(**p | {"x": p["x"].int()})
    with pytest.raises(ValueError, match="x1, W_down_t"):
        sparse_down(p["gate"], p["W_down_t"].T)
    with pytest.raises(ValueError, match="down_bias"):
        sparse_down(p["gate"], p["W_down_t"], down_bias=p["up_bias"])
    with pytest.raises(ValueError, match="candidates"):
        gate_product(p["x"], p["W_up"], candidates=p["gate"])
    for d, d_ff, sparsity in itertools.chain([(0, 1, 0.5), (1, 0, 0.5)], [(1, 1, s) for s in (-0.1, 1.1)]):
        with pytest.raises(ValueError):
            ffn_weights(d, d_ff, sparsity)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_triton_wants_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="triton"):
        sparse_ffn(**parts(6, 9, (2,)), backend="triton")


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_gate_is_that_of_a_linear_layer(engine, dtype):
    """A gate equal to its threshold must be active in the sparse network whenever it is in the dense one."""
    p = parts(515, 300, (2, 1), dtype)
    gate, linear = gate_product(p["x"], p["W_up"], p["up_bias"]), F.linear(p["x"], p["W_up"], p["up_bias"])
    if dtype == torch.bfloat16:
        assert (gate != linear).float().mean() < 0.01  # at a rounding boundary
    else:
        assert torch.equal(gate, linear)
