"""The loop over both passes gives what tensor operations give: values, gradients of both orders, masks, any number of
threads."""

from __future__ import annotations

import pytest
import torch

from paperworks.swin.gated_swinrmt import GatedRetention, ManhattanRetention
from paperworks.swin.gated_swinrmt.passes import library
from paperworks.swin.gated_swinrmt.windows import MapWindows

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler")
MASKS = ("none", "any", "windows", "additive", "nothing allowed")


def attention(variant: str, **options) -> GatedRetention:
    torch.manual_seed(0)
    made = GatedRetention(24, 2, (3, 5), variant, **options)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return made


def mask_of(kind: str):
    if kind == "none":
        return None
    if kind == "windows":
        return MapWindows((5, 13), (3, 5), (1, 2)).masks(torch.device("cpu"))
    allowed = torch.rand(6, 15, 15, generator=torch.Generator().manual_seed(1)) > 0.4
    if kind == "nothing allowed":
        allowed[:, 3] = False
    return torch.randn(6, 15, 15).masked_fill(~allowed, -100.0) if kind == "additive" else allowed


@pytest.mark.parametrize("variant", ["retention", "swat"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rotary", [True, False])
def test_loop_and_tensor_operations_agree(variant: str, kind: str, rotary: bool) -> None:
    m, x = attention(variant, rotary=rotary), torch.randn(12, 15, 24, requires_grad=True)
    mask, double = mask_of(kind), None
    y = m(x, mask)
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, *m.parameters()), g)
    exact = m.double()
    double = x.detach().double().requires_grad_()
    wanted = exact(double, mask)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(wanted, (double, *exact.parameters()), g.double())
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=2e-3)


def test_it_is_the_loop_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x = attention("retention"), torch.randn(2, 15, 24)

    def graph(node) -> set[str]:
        return {type(node).__name__} | {name for parent, _ in node.next_functions if parent for name in graph(parent)}

    loops = {"_ProjectedBackward", "_FusedBackward"}
    y = m(x)
    assert graph(y.grad_fn) & loops == {"_ProjectedBackward"}
    monkeypatch.setenv("PAPERWORKS_NATIVE", "0")
    eager = m(x)
    assert not graph(eager.grad_fn) & loops
    torch.testing.assert_close(y, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["retention", "swat"])
def test_a_layer_that_is_watched_is_called_and_changes_nothing(variant: str) -> None:
    m, seen = attention(variant), []
    x, mask = torch.randn(12, 15, 24, requires_grad=True), mask_of("any")
    y = m(x, mask)
    wanted = torch.autograd.grad(y.square().sum(), (x, *m.parameters()))
    m.k_proj.register_forward_hook(lambda *_: seen.append("k_proj"))
    other = m(x, mask)
    assert seen == ["k_proj"]
    torch.testing.assert_close(other, y, rtol=1e-4, atol=1e-4)
    for one, two in zip(torch.autograd.grad(other.square().sum(), (x, *m.parameters())), wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3 * float(two.abs().max()))


def test_gradients_of_some_parameters_only() -> None:
    m, x = attention("retention"), torch.randn(4, 15, 24)
    wanted = torch.autograd.grad(m(x).square().sum(), list(m.parameters()))
    some = [(p, g) for (name, p), g in zip(m.named_parameters(), wanted, strict=True) if name.endswith("bias")]
    for name, p in m.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    found = torch.autograd.grad(m(x).square().sum(), [p for p, _ in some])
    for one, (_, two) in zip(found, some, strict=True):
        torch.testing.assert_close(one, two)


def test_threads_do_not_change_a_bit() -> None:
    m, x, found = attention("swat"), torch.randn(7, 15, 24, requires_grad=True), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        q, k, v = (torch.randn(7, 3, 5, 2, 12, generator=torch.Generator().manual_seed(s)) for s in range(3))
        for t in (q, k, v):
            t.requires_grad_()
        y = m._both_passes(q, k, v, None)
        found.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
    torch.set_num_threads(before)
    assert x.shape == (7, 15, 24)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_of_gradients_go_by_tensor_operations() -> None:
    m, x = attention("swat"), torch.randn(2, 15, 24, requires_grad=True)

    def second(m: GatedRetention, x: torch.Tensor) -> torch.Tensor:
        [first] = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    found = second(m, x).double()
    torch.testing.assert_close(found, second(m.double(), x.detach().double().requires_grad_()), rtol=2e-3, atol=2e-2)


def test_whole_maps_and_extreme_scores() -> None:
    rmt = ManhattanRetention(8, 2)
    x = torch.randn(2, 17, 6, 8)
    torch.testing.assert_close(rmt(x).double(), rmt.double()(x.double()), rtol=1e-4, atol=1e-5)
    for variant in ("retention", "swat"):
        m = attention(variant)
        y = m(1e3 * torch.randn(2, 15, 24))
        assert bool(torch.isfinite(y).all())
