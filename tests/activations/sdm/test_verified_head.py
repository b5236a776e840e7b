import copy
import math

import pytest
import torch
from torch import nn

from paperworks.activations.sdm import SOFTMAX_Q, VerifiedHead, log_sdm, peak_regularizer

V, D, B = 11, 6, 5


def head(bias=False, moved=0.5):
    torch.manual_seed(0)
    made = VerifiedHead(nn.Linear(D, V, bias=bias))
    with torch.no_grad():
        made.positive.weight += moved * torch.randn(V, D)
    return made


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(B, D, generator=g)
    return h, torch.randint(0, V, (B,), generator=g), torch.randint(0, 9, (B,), generator=g), torch.rand(B, generator=g)


def test_halves_are_the_frozen_and_the_trained_head():
    linear = nn.Linear(D, V)
    made = VerifiedHead(linear)
    h = torch.randn(3, 2, D)
    logits = made(h)
    assert logits.shape == (3, 2, 2 * V)
    assert torch.equal(logits[..., :V], linear(h))
    assert torch.equal(logits[..., V:], linear(h))
    assert [name for name, p in made.named_parameters() if p.requires_grad] == ["positive.weight", "positive.bias"]
    linear.weight.data.zero_()
    assert made.negative.abs().sum() > 0
    assert torch.allclose(VerifiedHead(torch.ones(V, D))(h)[..., 0], h.sum(-1), atol=1e-6)


def test_phi_3_5_trains_98_5_million_weights():
    with torch.device("meta"):
        made = VerifiedHead(nn.Linear(3072, 32064, bias=False))
    assert sum(p.numel() for p in made.parameters()) == 32064 * 3072 == 98_500_608


def test_untouched_head_has_the_least_regulariser_and_decodes_like_the_model():
    made = head(moved=0.0)
    h, t, q, d = batch()
    nll = -log_sdm(made(h), q, d)[torch.arange(B), t + V].mean()
    assert made.loss(h, t, q, d, 0.0).item() == pytest.approx(nll.item(), rel=1e-6)
    assert made.loss(h, t, q, d, 0.7).item() == pytest.approx(nll.item() + 0.7, rel=1e-6)
    assert torch.equal(made.decode(h), nn.functional.linear(h, made.negative).argmax(-1))


def brute_force_regulariser(z, reference, target, q, d, loss):
    norms = []
    for n in range(len(z)):
        logs = [
            [(a - math.log(sum(math.exp(b) for b in scaled))) / math.log(2 + q[n]) for a in scaled]
            for scaled in ([d[n] * v * math.log(2 + q[n]) for v in row] for row in (z[n], reference[n] * 2))
        ]
        peaks = {target[n]}
        for row in (z[n], reference[n] * 2):
            peaks |= {row[:V].index(max(row[:V])), V + row[V:].index(max(row[V:]))}
        pairs = zip(*logs, strict=True)
        norms.append(math.sqrt(sum((a - b) ** 2 for i, (a, b) in enumerate(pairs) if i not in peaks)))
    r = sum(norms) / len(norms)
    s = min(max(math.log(loss) / math.log(r), 0), 1) if r > 1 else 0
    return r, math.sqrt(max(r, 1) ** s)


@pytest.mark.parametrize("moved", [0.1, 1.0, 3.0])
def test_loss_is_equation_32(moved):
    made, (h, t, q, d) = head(moved=moved).double(), batch()
    h, d = h.double(), d.double()
    z = made(h)
    nll = -log_sdm(z, q, d)[torch.arange(B), t + V].mean().item()
    lists = (z.tolist(), z[:, :V].tolist(), (t + V).tolist(), q.tolist(), d.tolist())
    r, expected = brute_force_regulariser(*lists, nll)
    assert made.loss(h, t, q, d, 0.1).item() == pytest.approx(nll + 0.1 * expected)
    assert (r > 1) == (expected > 1 or nll <= 1)


def test_regulariser_is_1_at_distance_up_to_1_and_grows_beyond():
    reference = torch.zeros(1, 2 * V, dtype=torch.float64)
    target, q, d = torch.tensor([V]), torch.tensor([SOFTMAX_Q], dtype=torch.float64), torch.ones(1).double()

    def r(shift):
        z = reference.clone()
        z[0, 3] = -shift  # neither a peak nor the target
        return peak_regularizer(z, reference, target, q, d, torch.tensor(8.0).double()).item()

    assert r(0.0) == 1.0
    assert r(0.5) == 1.0
    assert 1 < r(3.0) < r(6.0)
    assert r(6.0) <= math.sqrt(6.1)


def test_masked_entries_do_not_count():
    g = torch.Generator().manual_seed(1)
    reference, target = torch.randn(B, 2 * V, generator=g), torch.full((B,), V + 2)
    z = reference.clone()
    z[torch.arange(B), z[:, :V].argmax(1)] += 9.0
    q, d, nll = torch.full((B,), SOFTMAX_Q), torch.zeros(B), torch.tensor(5.0)
    assert peak_regularizer(z, reference, target, q, d, nll).item() == 1.0  # d = 0: uniform whatever the logits


def test_gradient_reaches_the_positive_half_only():
    made, (h, t, q, d) = head(moved=2.0), batch()
    made.loss(h, t, q, d, 0.1).backward()
    assert made.positive.weight.grad.abs().sum() > 0
    assert not made.negative.requires_grad
    clean = copy.deepcopy(made)
    clean.zero_grad()
    clean.loss(h, t, q, torch.zeros(B), 0.0).backward()
    assert clean.positive.weight.grad.abs().sum() == 0  # d = 0 carries no gradient


def test_learns_the_positive_half():
    made, (h, t, q, d) = head(moved=0.0), batch()
    optimizer = torch.optim.Adam(made.positive.parameters(), lr=0.1)
    d = torch.ones(B)
    for _ in range(60):
        optimizer.zero_grad()
        made.loss(h, t, q, d, 0.1).backward()
        optimizer.step()
    assert torch.equal(made.decode(h), t)
    assert torch.equal(made(h).argmax(-1), t + V)
    assert torch.equal(made.merge()(h).argmax(-1), t)


def test_decode_is_argmax_modulo_the_vocabulary():
    made, (h, *_) = head(moved=2.0), batch()
    assert torch.equal(made.decode(h), made(h).argmax(-1) % V)
    assert made.decode(h).max() < V


@pytest.mark.parametrize("bias", [False, True])
def test_state_merge_and_copies(bias):
    made, (h, *_) = head(bias), batch()
    twin = VerifiedHead(nn.Linear(D, V, bias=bias))
    twin.load_state_dict(made.state_dict())
    for other in (twin, copy.deepcopy(made)):
        assert torch.equal(other(h), made(h))
    merged = made.merge()
    assert torch.equal(merged(h), made(h)[:, V:])
    merged.weight.data.zero_()
    assert made.positive.weight.abs().sum() > 0


def test_half_precision_heads_compute_the_loss_in_float32():
    made, (h, t, q, d) = head().to(torch.bfloat16), batch()
    loss = made.loss(h.bfloat16(), t, q, d, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(head().loss(h, t, q, d, 0.1).item(), rel=0.05)


def test_loss_compiles_in_one_graph():
    made, (h, t, q, d) = head(), batch()
    compiled = torch.compile(lambda *a: made.loss(*a, 0.1), backend="eager", fullgraph=True)
    assert compiled(h, t, q, d).item() == pytest.approx(made.loss(h, t, q, d, 0.1).item())


def test_global_random_state_is_left_alone():
    linear = nn.Linear(D, V)
    before = torch.get_rng_state()
    VerifiedHead(linear).merge()
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_named():
    made, (h, t, q, d) = head(), batch()
    with pytest.raises(ValueError, match="target"):
        made.loss(h, t + V, q, d, 0.1)
    with pytest.raises(ValueError, match="beta"):
        made.loss(h, t, q, d, -0.1)
    with pytest.raises(ValueError, match="lm_head"):
        VerifiedHead(torch.zeros(3))
