"""The branches of all groups of tasks in one pass: attention, subnet and heads.

Branches read the same maps. So each level has one convolution whose channels are those of all branches, and gates and
subnets are batched matrix products: the numbers are those of `MLCA` after `MLCA`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.swinface.attention import EPS, MLCA, check_options, level_widths, split_levels
from paperworks.swin.swinface.tasks import TaskGroup, check_groups

__all__ = ["GroupedMLCA", "TaskBranches"]

Run = tuple[int, int]


def runs(numbers: Sequence[int]) -> list[Run]:
    """Numbers in rising order as ranges [start, stop): the branches of a range are views of the weights."""
    found: list[Run] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution that keeps the grid, without bias: (B, C, h, w) -> (B, O, h w).

    On a CPU without a graph as one matrix product: a convolution would first rearrange its weights, which at these
    sizes takes as long as the product.
    """
    size = weight.shape[-1]
    if x.device.type == "cpu" and x.shape[0] and not torch.is_grad_enabled() and x.dtype == weight.dtype:
        patches = F.unfold(x, size, padding=size // 2).transpose(0, 1)
        found = weight.flatten(1) @ patches.reshape(patches.shape[0], -1)
        return found.view(weight.shape[0], x.shape[0], -1).transpose(0, 1)
    return F.conv2d(x, weight, padding=size // 2).flatten(2)


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, G, I) by weights (G, O, I) and biases (G, O): (B, G, O)."""
    return torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


class BatchedLinear(nn.Module):
    """A linear layer for each of several groups: weight (G, O, I), bias (G, O)."""

    def __init__(self, groups: int, inputs: int, outputs: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs, **factory))
        self.bias = nn.Parameter(torch.empty(groups, outputs, **factory))
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, at: Run) -> Tensor:
        """(B, g, I) -> (B, g, O) for the groups of a range."""
        return batched_linear(x, self.weight[slice(*at)], self.bias[slice(*at)])


class GroupedMLCA(nn.Module):
    """As many `MLCA` as there are branches, in one pass; see there for the options."""

    def __init__(
        self,
        branches: int,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: int = 3,
        reduction: int = 16,
        pool: str = "max",
        **factory: Any,
    ) -> None:
        super().__init__()
        check_options(kernel_size, reduction, out_channels, pool)
        self.branches, self.in_channels, self.out_channels = branches, tuple(in_channels), out_channels
        self.kernel_size, self.reduction, self.pool = kernel_size, reduction, pool
        self.widths = level_widths(in_channels, out_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(c, branches * w, kernel_size, padding=kernel_size // 2, bias=False, **factory)
            for c, w in zip(in_channels, self.widths, strict=True)
        )
        hidden = out_channels // reduction
        self.fc1 = BatchedLinear(branches, out_channels, hidden, **factory)
        self.fc2 = BatchedLinear(branches, hidden, out_channels, **factory)
        self.norm = nn.BatchNorm1d(branches * out_channels, EPS, **factory)

    def extra_repr(self) -> str:
        """Branches and widths."""
        return f"branches={self.branches}, widths={self.widths}, pool={self.pool!r}"

    def forward(self, levels: Sequence[Tensor] | Tensor, at: Run | None = None) -> Tensor:
        """Features (B, g, out_channels) of the branches of a range [start, stop); of all by default."""
        at = (0, self.branches) if at is None else at
        gate, peak = self._gated(levels, at)
        return self._normed(gate * peak, at)

    def gate(self, levels: Sequence[Tensor] | Tensor, at: Run | None = None) -> Tensor:
        """The channel weights (B, g, out_channels) of branches."""
        return self._gated(levels, (0, self.branches) if at is None else at)[0]

    def kernel(self, level: int, at: Run) -> Tensor:
        """The convolution's weights (g widths, C, k, k) of a level for a range of branches: a view."""
        width = self.widths[level]
        return self.convs[level].get_parameter("weight")[at[0] * width : at[1] * width]

    def _gated(self, levels: Sequence[Tensor] | Tensor, at: Run) -> tuple[Tensor, Tensor]:
        means, peaks, pooled = [], [], []
        for level, x in enumerate(split_levels(levels, self.in_channels)):
            found = convolve(x, self.kernel(level, at)).unflatten(1, (at[1] - at[0], self.widths[level]))
            means.append(found.mean(-1))
            peaks.append(found.amax(-1))
            if self.pool == "avg":
                pooled.append(found.relu().mean(-1))
        mean, peak = torch.cat(means, -1), torch.cat(peaks, -1)
        gate = (self._network(mean, at) + self._network(peak, at)).sigmoid()
        return gate, (torch.cat(pooled, -1) if self.pool == "avg" else peak.relu())

    def _network(self, x: Tensor, at: Run) -> Tensor:
        return self.fc2(self.fc1(x, at).relu(), at)

    def _normed(self, x: Tensor, at: Run) -> Tensor:
        norm, part = self.norm, slice(at[0] * self.out_channels, at[1] * self.out_channels)
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        found = F.batch_norm(
            x.flatten(1), norm.running_mean[part], norm.running_var[part], norm.weight[part], norm.bias[part],
            norm.training, 0.1, norm.eps,
        )  # fmt: skip
        return found.view(x.shape)

    @torch.no_grad()
    def copy_branch(self, number: int, source: MLCA) -> None:
        """Give branch `number` the weights and statistics of `source`."""
        for ours, theirs in self._pairs(number, source):
            ours.copy_(theirs)

    @torch.no_grad()
    def branch(self, number: int) -> MLCA:
        """Branch `number` as a module of its own: a copy."""
        weight = self.norm.weight
        found = MLCA(
            self.in_channels, self.out_channels, self.kernel_size, self.reduction, self.pool,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        for ours, theirs in self._pairs(number, found):
            theirs.copy_(ours)
        return found.train(self.training)

    def _pairs(self, number: int, other: MLCA) -> list[tuple[Tensor, Tensor]]:
        if not 0 <= number < self.branches:
            raise ValueError(f"number: got {number}, wanted 0 to {self.branches - 1}")
        part = slice(number * self.out_channels, (number + 1) * self.out_channels)
        pairs: list[tuple[Tensor, Tensor]] = [
            (self.kernel(level, (number, number + 1)), conv.get_parameter("weight"))
            for level, conv in enumerate(other.convs)
        ]
        for mine, linear in ((self.fc1, other.fc1), (self.fc2, other.fc2)):
            pairs += [(mine.weight[number], linear.weight), (mine.bias[number], linear.bias)]
        for name in ("weight", "bias", "running_mean", "running_var"):
            pairs.append((getattr(self.norm, name)[part], getattr(other.norm, name)))
        return pairs


class TaskBranches(nn.Module):
    """Attention, subnet and heads of groups of tasks.

    A subnet is twice a linear layer, ReLU and dropout; the heads of a group are one linear layer, a slice a task.

    Args:
        groups: the tasks.
        in_channels: channels of the levels.
        width: features of a group.
        dropout: of the subnets.
    """

    def __init__(
        self, groups: Sequence[TaskGroup], in_channels: Sequence[int], width: int, dropout: float = 0.5, **factory: Any
    ) -> None:
        super().__init__()
        check_groups(groups)
        self.groups = tuple(groups)
        self.mlca = GroupedMLCA(len(groups), in_channels, width, reduction=min(16, width), **factory)
        self.subnet1 = BatchedLinear(len(groups), width, width, **factory)
        self.subnet2 = BatchedLinear(len(groups), width, width, **factory)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Linear(width, sum(group.outputs.values()), **factory) for group in groups)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        self.place: Mapping[str, int] = {task: i for i, group in enumerate(groups) for task in group.outputs}

    def features(self, levels: Sequence[Tensor] | Tensor, at: Run) -> Tensor:
        """What the subnets of a range of groups put out, (B, g, width)."""
        x = self.dropout(self.subnet1(self.mlca(levels, at), at).relu())
        return self.dropout(self.subnet2(x, at).relu())

    def forward(self, levels: Sequence[Tensor] | Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """(B, n) of every task, or of those named; the branches of other groups are not run."""
        wanted = set(self.place if tasks is None else tasks)
        found: dict[str, Tensor] = {}
        for at in runs([self.place[task] for task in wanted]):
            for number, x in zip(range(*at), self.features(levels, at).unbind(1), strict=True):
                outputs = self.groups[number].outputs
                parts = self.heads[number](x).split(list(outputs.values()), 1)
                found |= {task: part for task, part in zip(outputs, parts, strict=True) if task in wanted}
        return found
