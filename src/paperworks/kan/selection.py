"""Layers whose inputs choose their family of functions (S-KAN, arXiv 2408.08338).

    y_o = sum_d ( b_od silu(x_d) + sum_m alpha_dm sum_k c^m_odk B^m_k(squash(x_d)) ),   alpha_d = softmax(l_d / tau)

The node is the input: its weights alpha_d are shared by the edges that leave it, so that after the choice one family
is evaluated for one input. `select` folds alpha into c and keeps one family for each input; `compact` drops the rest.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.kan.families import Basis
from paperworks.kan.fused import SQUASHES, Run, Tile, check_squash, kan_sum
from paperworks.kan.linear import check_input, check_sizes, reset_coefficients
from paperworks.kan.names import get_basis

FAMILIES = ("bspline", "chebyshev", "fourier", "rbf", "wavelet")
"""The default pool, in the order of the coefficients."""


class SelectionError(RuntimeError, ValueError):
    """A layer is in the wrong stage: it has selected already, or not yet."""


def family_bases(families: Sequence[str | Basis], num_functions: int) -> nn.ModuleList:
    """The bases of a pool. Raises ValueError for an empty pool, a repeated family or unequal numbers of functions."""
    if isinstance(families, str) or not len(families):
        raise ValueError(f"families: got {families!r}, wanted a sequence of one or more names or Basis objects")
    seen = [f if isinstance(f, str) else id(f) for f in families]
    if len(set(seen)) < len(seen):
        raise ValueError(f"families: got {tuple(families)!r}, wanted each family once")
    bases = [get_basis(family, num_functions) for family in families]
    for basis in bases:
        if basis.num_functions != num_functions:
            raise ValueError(
                f"families: {type(basis).__name__} has {basis.num_functions} functions, wanted num_functions = "
                f"{num_functions} in every family"
            )
    return nn.ModuleList(bases)


class Choosing(nn.Module):
    """What layers of either kind share once a choice is made: the buffer `choice` and the inputs of each family.

    `choice` is None before, and (D,) int64 after, also when it arrives by `load_state_dict`.
    """

    choice: Tensor | None
    bases: nn.ModuleList
    families: tuple[str, ...]

    def __init__(self, bases: nn.ModuleList) -> None:
        super().__init__()
        self.bases = bases
        self.register_buffer("choice", None)

    def _choose(self, choice: Tensor) -> None:
        """Keep the choice, and sort the inputs by family once."""
        self.choice = choice
        for m in range(len(self.bases)):
            columns = (choice == m).nonzero().flatten().to(torch.int32)
            self.register_buffer(f"columns_{m}", columns, persistent=False)

    def _runs(self) -> tuple[Run, ...]:
        assert self.choice is not None
        columns = [getattr(self, f"columns_{m}") for m in range(len(self.bases))]
        whole = self.choice.shape[0]
        return tuple(
            Run(basis, None if c.shape[0] == whole else c)  # type: ignore[arg-type]
            for basis, c in zip(self.bases, columns, strict=True)
            if c.shape[0]
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        choice = state_dict.get(prefix + "choice")
        if choice is not None and self.choice is None:
            self._after_choice(torch.zeros_like(choice, device=next(self.parameters()).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if choice is not None and self.choice is not None:
            self._choose(self.choice)

    def _after_choice(self, choice: Tensor) -> None:
        self._choose(choice)


class Selecting(Choosing, ABC):
    """The part of S-KAN that a linear layer and a convolution share: logits, temperature, contribution, choice.

    A subclass has `coef` with the families first, and says with `_inputs(x)` which rows of inputs reach the bases,
    (N, D), and with `_folded(alpha)` what the coefficients are when alpha is taken into them.
    """

    coef: nn.Parameter
    logits: nn.Parameter

    def __init__(
        self, nodes: int, families: Sequence[str | Basis], num_functions: int, squash: str, tau: float
    ) -> None:
        super().__init__(family_bases(families, num_functions))
        self.families = tuple(f if isinstance(f, str) else type(f).__name__ for f in families)
        self.nodes, self.num_functions, self.squash = nodes, num_functions, check_squash(squash)
        self.tau = tau

    @property
    def tau(self) -> float:
        """Temperature of the softmax over families; a float > 0 that may be set."""
        return self._tau

    @tau.setter
    def tau(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f"tau: got {value!r}, wanted a number > 0")
        self._tau = float(value)

    def weights(self) -> Tensor:
        """alpha = softmax(logits / tau), (D, M)."""
        return torch.softmax(self.logits / self._tau, -1)

    def entropy(self) -> Tensor:
        """sum_d H(alpha_d) in nats: what a penalty for undecided nodes would weigh."""
        log = torch.log_softmax(self.logits / self._tau, -1)
        return -(log.exp() * log).sum()

    @torch.no_grad()
    def contribution(self, x: Tensor) -> Tensor:
        """s_dm = sqrt(mean over x of sum_o (alpha_dm phi^m_od)^2), (D, M): how much each family says at each node.

        For a convolution the mean is over positions too, the sum over the taps as well. Uncentred: a constant counts.
        """
        rows = self._inputs(x)
        if not len(rows):
            raise ValueError("x: got no rows, wanted at least one")
        coef, found = self._coefficients_by_node(), []
        for basis, c in zip(self.bases, coef, strict=True):
            gram = rows.new_zeros(self.nodes, self.num_functions, self.num_functions)
            for part in rows.split(max(1, (1 << 20) // (self.nodes * self.num_functions))):
                values = basis(SQUASHES[self.squash](part)).transpose(0, 1)
                gram += values.transpose(1, 2) @ values
            found.append(((c @ (gram / len(rows))) * c).sum((1, 2)).clamp(min=0).sqrt())
        return torch.stack(found, -1) * self.weights().to(rows)

    @torch.no_grad()
    def select(self, choice: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """Fold alpha into the coefficients, freeze the logits and keep one family a node; returns the choice (D,).

        Args:
            choice: indices into `families`; None takes the largest contribution on `x`, or without x the largest
                weight.

        Raises:
            SelectionError: the layer has selected before.
            ValueError: `choice` has another shape or a value that is not the index of a family.
            TypeError: `choice` is no integer tensor.
        """
        if self.choice is not None:
            raise SelectionError("select: this layer has selected its families already")
        if choice is None:
            choice = (self.weights() if x is None else self.contribution(x)).argmax(-1)
        choice = self._checked(choice)
        self.coef.copy_(self._folded(self.weights()))
        self._after_choice(choice)
        return choice

    def _after_choice(self, choice: Tensor) -> None:
        self._choose(choice)
        self.logits.requires_grad_(False)

    def _checked(self, choice: Tensor) -> Tensor:
        if not isinstance(choice, Tensor) or choice.is_floating_point() or choice.dtype == torch.bool:
            raise TypeError(f"choice: got {choice!r}, wanted an integer tensor")
        if choice.shape != (self.nodes,):
            raise ValueError(f"choice: got shape {tuple(choice.shape)}, wanted ({self.nodes},)")
        if ((choice < 0) | (choice >= len(self.bases))).any():
            raise ValueError(f"choice: got {choice.tolist()}, wanted indices of the {len(self.bases)} families")
        return choice.to(self.coef.device, torch.int64).clone()

    @abstractmethod
    def _inputs(self, x: Tensor) -> Tensor:
        """The rows of inputs that reach the bases, (N, D)."""

    @abstractmethod
    def _coefficients_by_node(self) -> Tensor:
        """c with the node second: (M, D, outputs and taps, K)."""

    @abstractmethod
    def _folded(self, alpha: Tensor) -> Tensor:
        """c with alpha (D, M) taken into it."""

    def extra_repr(self) -> str:
        stage = "selecting" if self.choice is None else "selected"
        return f"families={self.families}, num_functions={self.num_functions}, squash={self.squash}, {stage}"


class SKANLinear(Selecting):
    """Linear S-KAN layer: (..., in_features) -> (..., out_features).

    Args:
        in_features, out_features: D and O.
        num_functions: K, the same in every family.
        families: names of `get_basis`, or `Basis` objects with K functions (yours too).
        squash: ``"tanh"``, or ``"clamp"`` to [-1, 1].
        tau: temperature of the weights at the start.
        generator: for the initial coefficients; the global one if None.

    Attributes:
        coef: c (M, O, D, K).
        base_weight: b (O, D).
        logits: l (D, M), 0 at the start; frozen by `select`.
        choice: None, and (D,) int64 after `select`.

    Raises ValueError for an unknown or repeated family, a number of functions that a family does not allow, sizes
    below 1, tau <= 0; when called, for another last dimension than D.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_functions: int = 8,
        families: Sequence[str | Basis] = FAMILIES,
        squash: str = "tanh",
        tau: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(in_features, families, num_functions, squash, tau)
        self.in_features, self.out_features = in_features, out_features
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        m = len(self.bases)
        self.coef = nn.Parameter(torch.empty(m, out_features, in_features, num_functions, **like))
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features, **like))
        self.logits = nn.Parameter(torch.empty(in_features, m, **like))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the coefficients anew and make all families equal."""
        reset_coefficients(self.coef, self.base_weight, self.in_features, generator)
        nn.init.zeros_(self.logits)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_features)
        if self.choice is not None:
            tiles = [Tile(self._runs(), self._chosen_coef(self.choice))]
        else:
            # Alpha multiplies the weights, not the basis matrix: O D K products for each family instead of N D K.
            folded = self._folded(self.weights())
            tiles = [Tile((Run(basis),), w) for basis, w in zip(self.bases, folded, strict=True)]  # type: ignore[arg-type]
        return kan_sum(x, self.base_weight, tiles, self.squash)

    def compact(self) -> PrunedSKANLinear:
        """The same function with the chosen coefficients only. Raises SelectionError before `select`."""
        if self.choice is None:
            raise SelectionError("compact: this layer has not selected its families yet")
        coef = self._chosen_coef(self.choice).detach().clone()
        return PrunedSKANLinear(
            coef,
            self.base_weight.detach().clone(),
            self.choice,
            copy.deepcopy(self.bases),
            squash=self.squash,
            families=self.families,
        )

    def _chosen_coef(self, choice: Tensor) -> Tensor:
        return self.coef.gather(0, choice.view(1, 1, -1, 1).expand(1, *self.coef.shape[1:]))[0]

    def _inputs(self, x: Tensor) -> Tensor:
        check_input(x, self.in_features)
        return x.reshape(-1, self.in_features)

    def _coefficients_by_node(self) -> Tensor:
        return self.coef.transpose(1, 2)

    def _folded(self, alpha: Tensor) -> Tensor:
        return self.coef * alpha.t()[:, None, :, None]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}"


class PrunedSKANLinear(Choosing):
    """What is left of an `SKANLinear`: one family for each input. Made by `SKANLinear.compact`.

    Attributes:
        coef: (O, D, K).
        base_weight: (O, D).
        choice: (D,) int64, indices into `families`.
    """

    def __init__(
        self,
        coef: Tensor,
        base_weight: Tensor,
        choice: Tensor,
        bases: nn.ModuleList,
        *,
        squash: str,
        families: tuple[str, ...],
    ) -> None:
        super().__init__(bases)
        self.out_features, self.in_features = base_weight.shape
        self.squash, self.families = check_squash(squash), families
        self.coef, self.base_weight = nn.Parameter(coef), nn.Parameter(base_weight)
        self._choose(choice.clone())

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_features)
        return kan_sum(x, self.base_weight, [Tile(self._runs(), self.coef)], self.squash)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, squash={self.squash}"
