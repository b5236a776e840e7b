"""The calls that are timed compute the same thing, on the same tensors, at the sparsity they are told."""

import pytest
import torch

from paperworks.lab.trial import Trial
from paperworks.papers.protocols import sparse_ffn_calls as calls

SIZE = {"d": 512, "d_ff": 1000, "sparsity": 0.9}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8932, 1.0])
def test_the_threshold_leaves_the_share_below(sparsity):
    mlp, x, threshold = calls.random_mlp(Trial(3), 32, 200, sparsity)
    below = (mlp.gate_proj(x) < threshold).float().mean().item()
    assert below == pytest.approx(sparsity, abs=0.5 / 200 + 1e-6)
    assert mlp.down_proj.weight.shape == (32, 200)
    assert len({tuple(row) for row in mlp.up_proj.weight.tolist()}) == 200


@pytest.mark.parametrize("side", ["up", "down"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparse_steps_are_the_dense_steps(side, dtype):
    trial = Trial(0, "smoke")
    dense, sparse = (getattr(calls, f"{kind}_{side}")(trial, **SIZE, dtype=dtype) for kind in ("dense", "sparse"))
    outputs = [(dense(), sparse()) for _ in range(calls.TOKENS + 1)]
    for expected, found in outputs:
        torch.testing.assert_close(found, expected)
    assert outputs[0][0].shape == (1, 125 if side == "up" else 64), "an eighth of the widths"
    assert not torch.equal(outputs[1][0], outputs[0][0]), "another token each call"
    assert torch.equal(outputs[-1][0], outputs[0][0])
    if side == "up":
        zeros = torch.cat([expected for expected, _ in outputs[:-1]]) == 0
        assert zeros.float().mean().item() == pytest.approx(0.9, abs=2e-3)
    other = getattr(calls, f"dense_{side}")(Trial(1, "smoke"), **SIZE, dtype=dtype)
    assert not torch.equal(other(), outputs[0][0])


def test_the_sparse_network_is_the_one_with_fatrelu():
    trial = Trial(0, "smoke")
    dense, sparse = calls.dense_ffn(trial, **SIZE), calls.sparse_mlp(trial, **SIZE)
    mlp, tokens = calls._network(0, "cpu", 64, 125, "float32")
    gates = mlp.gate_proj(tokens)
    threshold = gates.flatten().kthvalue(round(0.9 * gates.numel())).values
    for x, gate in zip(tokens, gates, strict=True):
        torch.testing.assert_close(dense(), mlp(x))
        expected = mlp.down_proj(gate.masked_fill(gate < threshold, 0) * mlp.up_proj(x))
        found = sparse()
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
