import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from activations.sdm import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.activations.sdm import SupportIndex


def brute_force(h, predicted, index, exclude_self=False):
    e, y, p = index.exemplars.double().numpy(), index.labels.tolist(), index.predictions.tolist()
    rows = [
        reference.similarity_distance(row, c, e, y, p, own=i if exclude_self else None)
        for i, (row, c) in enumerate(zip(h.double().numpy(), predicted.tolist(), strict=True))
    ]
    return [r[0] for r in rows], [r[1] for r in rows]


def random_case(rng, n, queries, m, kind, exclude_self, dtype=torch.float32):
    def points(count):
        if kind == "grid":  # many equal distances and duplicates
            return torch.tensor(rng.integers(0, 3, (count, m)), dtype=dtype)
        spread = rng.normal(size=(count, m)) * (1e-3 if kind == "far" else 1)
        return torch.tensor(spread + (100 if kind == "far" else 0), dtype=dtype)

    e, y = points(n), torch.tensor(rng.integers(0, 3, n))
    predictions = torch.where(torch.tensor(rng.random(n) < 0.8), y, torch.tensor(rng.integers(0, 3, n)))
    h = e[: min(queries, n)] if exclude_self else points(queries)
    return e, y, predictions, h, torch.tensor(rng.integers(0, 3, len(h)))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    queries=st.integers(0, 20),
    m=st.integers(1, 6),
    kind=st.sampled_from(["grid", "near", "far"]),
    exclude_self=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    chunk=st.integers(1, 30),
)
def test_query_is_the_walk_along_sorted_neighbours(seed, n, queries, m, kind, exclude_self, dtype, chunk):
    e, y, p, h, predicted = random_case(np.random.default_rng(seed), n, queries, m, kind, exclude_self, dtype)
    index = SupportIndex(e, y, p, chunk=chunk)
    q, d = index.query(h, predicted, exclude_self=exclude_self)
    expected_q, expected_d = brute_force(h, predicted, index, exclude_self)
    assert q.tolist() == expected_q
    assert q.dtype == torch.int64
    assert d.dtype == dtype
    np.testing.assert_allclose(d.numpy(), np.array(expected_d), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    kind=st.sampled_from(["grid", "near", "far"]),
    backend=st.sampled_from(["torch", "faiss"]),
    data=st.data(),
)
def test_neighbours_are_the_nearest_in_order(seed, n, kind, backend, data):
    if backend == "faiss":
        pytest.importorskip("faiss", reason="the faiss backend needs faiss")
    e, y, p, h, _ = random_case(np.random.default_rng(seed), n, 7, 3, kind, False)
    k = data.draw(st.integers(1, n))
    indices, distances = SupportIndex(e, y, p, backend=backend, chunk=3).neighbours(h, k)
    exact = np.linalg.norm(h.double().numpy()[:, None] - e.double().numpy(), axis=2)
    assert indices.shape == distances.shape == (7, k)
    np.testing.assert_allclose(distances, np.take_along_axis(exact, indices.numpy(), 1), rtol=1e-6)
    if backend == "torch":
        assert indices.tolist() == np.argsort(exact, axis=1, kind="stable")[:, :k].tolist()
    else:  # its own product cannot tell points apart that crowd below float32
        assert kind == "far" or np.allclose(distances, np.sort(exact, axis=1)[:, :k], rtol=1e-3)


def test_duplicates_are_at_distance_0_and_only_the_row_itself_is_excluded():
    e = 100 + torch.randn(50, 20)
    e[1] = e[0]
    zeros = torch.zeros(50, dtype=torch.int64)
    index = SupportIndex(e, zeros, zeros)
    assert index.query(e, zeros)[1].tolist() == [0.0] * 50
    q, d = index.query(e, zeros, exclude_self=True)
    assert d[:2].tolist() == [0.0, 0.0]
    assert bool((d[2:] > 0).all())
    assert q.tolist() == [49] * 50


def test_q_is_not_capped():
    zeros = torch.zeros(1500, dtype=torch.int64)
    q, _ = SupportIndex(torch.randn(1500, 2), zeros, zeros).query(torch.randn(3, 2), zeros[:3])
    assert q.tolist() == [1500] * 3


def test_a_wrongly_predicted_neighbour_of_the_right_class_stops_the_walk():
    e = torch.tensor([[1.0], [2.0], [3.0]])
    index = SupportIndex(e, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0]))
    assert index.query(torch.zeros(1, 1), torch.tensor([0]))[0].item() == 1
    assert index.query(torch.zeros(1, 1), torch.tensor([1]))[0].item() == 0


def test_no_other_point_is_infinitely_far():
    index = SupportIndex(torch.ones(1, 2), torch.tensor([0]), torch.tensor([0]))
    q, d = index.query(torch.ones(1, 2), torch.tensor([0]), exclude_self=True)
    assert (q.item(), d.item()) == (0, float("inf"))


def test_crowded_points_are_still_exact():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (400,), generator=g)
    e = 1e-4 * torch.randn(400, 30, generator=g) + 5 * torch.nn.functional.one_hot(y, 30)
    p = torch.where(torch.rand(400, generator=g) < 0.05, 1 - y, y)
    index = SupportIndex(e[:300], y[:300], p[:300])
    q, d = index.query(e[300:], y[300:])
    expected_q, expected_d = brute_force(e[300:], y[300:], index)
    assert q.tolist() == expected_q
    np.testing.assert_allclose(d, expected_d, rtol=1e-6)


def test_survives_copying():
    e, zeros = torch.randn(9, 2), torch.zeros(9, dtype=torch.int64)
    index = SupportIndex(e, zeros, zeros)
    for twin in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert torch.equal(twin.query(e, zeros)[0], index.query(e, zeros)[0])


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"exemplars": torch.zeros(3)}, ValueError, "exemplars"),
        ({"exemplars": torch.full((3, 2), float("nan"))}, ValueError, "exemplars"),
        ({"exemplars": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "exemplars"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, "labels"),
        ({"predictions": torch.zeros(3)}, TypeError, "predictions"),
        ({"backend": "annoy"}, ValueError, "backend"),
        ({"chunk": 0}, ValueError, "chunk"),
    ],
)
def test_bad_construction_is_named(change, error, name):
    zeros = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(error, match=name):
        SupportIndex(**{"exemplars": torch.zeros(3, 2), "labels": zeros, "predictions": zeros} | change)


def test_bad_queries_are_named():
    zeros = torch.zeros(3, dtype=torch.int64)
    index = SupportIndex(torch.zeros(3, 2), zeros, zeros)
    with pytest.raises(ValueError, match="h must have shape"):
        index.query(torch.zeros(1, 3), zeros[:1])
    with pytest.raises(ValueError, match="finite"):
        index.query(torch.full((1, 2), float("inf")), zeros[:1])
    with pytest.raises(ValueError, match="exclude_self"):
        index.query(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), exclude_self=True)
    with pytest.raises(ValueError, match="k must"):
        index.neighbours(torch.zeros(1, 2), 4)


def compare_fused(device):
    from paperworks.activations.sdm.support_triton import fused_query

    for seed, kind, exclude_self in ((0, "grid", False), (1, "near", True), (2, "grid", True), (3, "near", False)):
        e, y, p, h, predicted = random_case(np.random.default_rng(seed), 150, 45, 5, kind, exclude_self)
        index = SupportIndex(e, y, p)
        expected_q, expected_d = index.query(h, predicted, exclude_self=exclude_self)
        parts = (t.to(device) for t in (h, predicted, index.exemplars, index._group))
        q, d = fused_query(*parts, exclude_self=exclude_self)
        assert q.tolist() == expected_q.tolist()
        np.testing.assert_allclose(d.cpu(), expected_d, rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
def test_fused_kernel_on_the_gpu():
    pytest.importorskip("triton", reason="the fused kernel needs triton")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    compare_fused("cuda")


def test_fused_kernel_under_the_interpreter():
    pytest.importorskip("triton", reason="the fused kernel needs triton")
    # A process of its own: triton reads the variable when it is imported.
    code = "from activations.sdm.test_support import compare_fused; compare_fused('cpu')"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
