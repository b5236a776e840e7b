"""What autograd keeps, each storage once, parameters left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperworks.measure.stored_activations import stored_activations


def test_a_chain_of_linear_and_sigmoid() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    found = stored_activations(model, x)
    assert dict(found.rows) == {"0": 5 * 4 * 4, "1": 5 * 8 * 4}, "the second linear stores the sigmoid's output again"
    assert found.bytes == sum(size for _, size in found.rows) == 80 + 160


def test_frozen_layers_below_store_nothing_and_the_loss_counts() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    x = torch.randn(5, 4)
    assert dict(stored_activations(model, x).rows) == {"2": 5 * 8 * 4}
    with_loss = stored_activations(model, x, loss=lambda y: y.square().sum())
    assert dict(with_loss.rows) == {"2": 160, "loss": 5 * 2 * 4}


def test_views_and_expanded_tensors_are_one_storage_and_weights_are_no_activation() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :1].expand(4, 6) * self.weight.t()[:4] + x[:, 1:] * x[:, :5].sum()).sum()

    x = torch.randn(4, 6, requires_grad=True)

    class Pick(Model):
        def forward(self, x: Tensor) -> Tensor:
            return x[:2] * self.weight[0] + x[2:] * self.weight[1]

    assert stored_activations(Pick(), x).bytes == 4 * 6 * 4, "two views of one input"
    assert stored_activations(nn.Linear(6, 6), torch.randn(3, 6).requires_grad_()).bytes == 3 * 6 * 4


def test_checkpointing_stores_less_and_everything_is_put_back() -> None:
    inner = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4)])

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return out

    x = torch.randn(8, 16)
    assert stored_activations(Checkpointed(), x).bytes < stored_activations(inner, x).bytes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in inner.modules())


def test_inputs_may_be_positional_or_named() -> None:
    model = nn.Bilinear(2, 3, 4)
    a, b = torch.randn(5, 2), torch.randn(5, 3)
    assert stored_activations(model, (a, b)).bytes == stored_activations(model, {"input1": a, "input2": b}).bytes > 0
