"""The chunked scan against the plain recurrence, and the segment sum in its three forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.efficiency.xamba import segment_sum, ssd_scan

FORMS = ("cumsum", "matmul", "difference")


def draws(b=2, T=23, h=6, p=4, g=3, n=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(b, T, h, p), "dt": normal(b, T, h).abs(), "A": -3 * normal(h).abs(),
        "B": normal(b, T, g, n), "C": normal(b, T, g, n), "D": normal(h), "state": normal(b, h, p, n),
    }  # fmt: skip


def recurrence(x, dt, A, B, C, D, state):
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t, one step at a time."""
    outputs, repeats = [torch.zeros_like(x[:, :1])[:, :0]], x.shape[2] // B.shape[2]
    for t in range(x.shape[1]):
        Bt, Ct = (v[:, t].repeat_interleave(repeats, 1) for v in (B, C))
        state = state * torch.exp(dt[:, t] * A)[..., None, None]
        state = state + (dt[:, t, :, None] * x[:, t])[..., None] * Bt[:, :, None]
        outputs.append(((state * Ct[:, :, None]).sum(-1) + D[:, None] * x[:, t])[:, None])
    return torch.cat(outputs, 1), state


@settings(deadline=None, max_examples=40)
@given(
    T=st.integers(0, 20), g=st.sampled_from([1, 2, 4]), b=st.integers(0, 2), chunk=st.integers(1, 24),
    form=st.sampled_from(FORMS), n=st.integers(1, 3), p=st.integers(1, 3),
)  # fmt: skip
def test_any_chunk_equals_the_recurrence(T, g, b, chunk, form, n, p):
    given_ = draws(b, T, 4, p, g, n)
    y, state = ssd_scan(**given_, chunk=chunk, segsum=form)
    wanted, last = recurrence(**given_)
    torch.testing.assert_close(y, wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_two_halves_make_a_whole(form):
    given_ = draws()
    whole, last = ssd_scan(**given_, chunk=8, segsum=form)
    sequences = ("x", "dt", "B", "C")
    first, state = ssd_scan(**{k: v[:, :11] if k in sequences else v for k, v in given_.items()}, chunk=8)
    rest = {k: v[:, 11:] if k in sequences else v for k, v in given_.items()}
    second, end = ssd_scan(**rest | {"state": state}, chunk=8)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


def test_without_state_or_skip_it_starts_from_zero():
    given_ = draws()
    y, _ = ssd_scan(*(given_[k] for k in ("x", "dt", "A", "B", "C")))
    zeros = torch.zeros_like(given_["state"])
    wanted, _ = ssd_scan(**given_ | {"state": zeros, "D": torch.zeros_like(given_["D"])})
    torch.testing.assert_close(y, wanted)
    by_feature, _ = ssd_scan(**given_ | {"D": given_["D"][:, None].expand(6, 4)})
    torch.testing.assert_close(by_feature, ssd_scan(**given_)[0])


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_recurrence(form):
    given_ = {k: v.requires_grad_() for k, v in draws(1, 7, 2, 2, 1, 3).items()}
    found = torch.autograd.grad(ssd_scan(**given_, chunk=3, segsum=form)[0].square().sum(), list(given_.values()))
    wanted = torch.autograd.grad(recurrence(**given_)[0].square().sum(), list(given_.values()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_segment_sum_is_a_sum_of_segments(form):
    a = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S = segment_sum(a, form)
    for i in range(9):
        for j in range(9):
            wanted = a[:, j + 1 : i + 1].sum(-1) if j <= i else torch.full((2,), -torch.inf, dtype=a.dtype)
            torch.testing.assert_close(S[:, i, j], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_strong_decay_does_not_overflow_above_the_diagonal(form):
    """There c_i - c_j is positive and large: its exponential is infinite in float32."""
    a = torch.full((1, 64), -50.0)
    a.requires_grad_()
    decay = segment_sum(a, form).exp()
    assert decay.isfinite().all()
    [gradient] = torch.autograd.grad(decay.sum(), a)
    assert gradient.isfinite().all()


def test_compiled_and_autocast():
    given_ = draws(dtype=torch.float32)
    y, _ = ssd_scan(**given_, chunk=8)
    torch.testing.assert_close(torch.compile(ssd_scan, backend="eager")(**given_, chunk=8)[0], y)
    with torch.autocast("cpu", torch.bfloat16):
        low, state = ssd_scan(**given_, chunk=8)
    assert low.dtype == state.dtype == torch.float32
    torch.testing.assert_close(low, y, atol=0.3, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"x": torch.zeros(2, 3)}, "x:"),
        ({"x": torch.zeros(2, 23, 6, 4, dtype=torch.int64)}, "x:"),
        ({"dt": torch.zeros(2, 23, 5)}, "dt:"),
        ({"A": torch.zeros(5)}, "A:"),
        ({"B": torch.zeros(2, 23, 4, 5)}, "groups"),
        ({"B": torch.zeros(2, 22, 3, 5)}, "B:"),
        ({"C": torch.zeros(2, 23, 3, 6)}, "C:"),
        ({"D": torch.zeros(5)}, "D:"),
        ({"state": torch.zeros(2, 6, 5, 4)}, "state:"),
        ({"chunk": 0}, "chunk:"),
        ({"segsum": "scan"}, "segsum:"),
    ],
)
def test_bad_input(change, name):
    with pytest.raises(ValueError, match=name):
        ssd_scan(**draws(dtype=torch.float32) | change)
