"""A gated MLP for decoding: it skips the weights of the rows that the token leaves inactive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.efficiency.prosparse.fatrelu import FATReLU, Threshold
from paperworks.efficiency.prosparse.sparse_ffn import (
    check_backend,
    gate_product,
    sparse_ffn,
    transposed_linear,
    wants_gradient,
)
from paperworks.surgery.gated_mlps import PROJECTIONS, find_gated_mlps


class TransposedLinear(nn.Linear):
    """A linear layer whose weight (m, n) lies in memory column by column, so that its transpose is contiguous."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        return transposed_linear(input, self.weight.t(), self.bias)


class SparseGatedMLP(nn.Module):
    """down_proj(FATReLU(gate_proj(x)) * up_proj(x)), reading only the active rows of up_proj and down_proj.

    Up to `max_tokens` tokens at once take the sparse path (`sparse_ffn`); more of them (the prompt) take dense
    products, since the rows that B tokens need together approach all rows. So do inputs that want a gradient, and
    autocast. The projections are used by their weights: hooks on them run in the dense path only.

    It has the parts and the state_dict of the MLP it replaces. `down_proj.weight` keeps its shape (d, d_ff) but lies
    transposed in memory, so that a row of W_down^T is one piece; both paths use that one copy. `gate_proj` and
    `up_proj` share the memory of the dense MLP. The parameters are frozen: it is for inference.

    Args:
        gate_proj, up_proj, down_proj: plain `torch.nn.Linear`, with or without bias, of one dtype and device.
        threshold: t >= 0, or one a channel, (d_ff,). The buffer `act_fn.threshold` holds it.
        backend: "auto", "torch" or "triton", as in `sparse_ffn`.
        max_tokens: the most tokens that take the sparse path; 0 for none.
        predictor: x (..., d) -> logits (..., d_ff), > 0 where a row is taken to be active (`ActivationPredictor`). In
            the sparse path only the rows of gate_proj that it names are read, and what it misses is lost. Without
            one, the result is exact. It is the attribute `predictor`, which may be changed at any time.

    Raises:
        TypeError: a projection that is not a plain linear layer (quantised, adapted, offloaded).
        ValueError: projections that do not fit each other, a bad threshold, an unknown backend, negative `max_tokens`.
    """

    def __init__(
        self,
        gate_proj: nn.Linear,
        up_proj: nn.Linear,
        down_proj: nn.Linear,
        threshold: Threshold = 0.0,
        *,
        backend: str = "auto",
        max_tokens: int = 8,
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check_projections(gate_proj, up_proj, down_proj)
        check_backend(backend)
        if max_tokens < 0:
            raise ValueError(f"max_tokens: got {max_tokens}, wanted 0 or more")
        self.gate_proj, self.up_proj = _frozen(gate_proj), _frozen(up_proj)
        self.down_proj = _transposed(_frozen(down_proj, TransposedLinear))
        self.act_fn = FATReLU(threshold, device=gate_proj.weight.device)
        if self.act_fn.threshold.ndim and len(self.act_fn.threshold) != gate_proj.out_features:
            raise ValueError(f"threshold: got {len(self.act_fn.threshold)}, wanted 1 or {gate_proj.out_features}")
        self.backend, self.max_tokens, self.predictor = backend, max_tokens, predictor
        self.register_load_state_dict_post_hook(_lay_out)

    @classmethod
    def from_dense(
        cls,
        mlp: nn.Module,
        threshold: Threshold | None = None,
        *,
        backend: str = "auto",
        max_tokens: int = 8,
        predictor: nn.Module | None = None,
    ) -> SparseGatedMLP:
        """The sparse counterpart of a gated MLP (LlamaMLP, MistralMLP, Qwen3MLP, GemmaMLP, ...), which stays as it is.

        Args:
            mlp: a module with `gate_proj`, `up_proj`, `down_proj` and `act_fn`.
            threshold: None takes that of the MLP's own FATReLU, 0 where its activation is ReLU. A threshold takes the
                place of whatever activation there is.
            backend, max_tokens, predictor: as of the class.

        Raises:
            TypeError: a projection that is not a plain linear layer.
            ValueError: no gated MLP, one that computes something else, or no threshold for an MLP with another
                activation.
        """
        _check_convertible(mlp, threshold)
        if threshold is None:
            threshold = mlp.act_fn.threshold if isinstance(mlp.act_fn, FATReLU) else 0.0
        if predictor is None and isinstance(mlp, SparseGatedMLP):
            predictor = mlp.predictor
        dense: Any = mlp
        made = cls(
            dense.gate_proj,
            dense.up_proj,
            dense.down_proj,
            threshold,
            backend=backend,
            max_tokens=max_tokens,
            predictor=predictor,
        )
        return made.train(mlp.training)

    @property
    def W_down_t(self) -> Tensor:
        """(d_ff, d), contiguous: `down_proj.weight` seen the way it lies in memory."""
        return self.down_proj.weight.t()

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        if not self._is_sparse(x):
            y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
            return y
        named = None if self.predictor is None else self.predictor(x) > 0
        gate = gate_product(x, self.gate_proj.weight, self.gate_proj.bias, named, backend=self.backend)
        return sparse_ffn(
            x,
            gate,
            self.up_proj.weight,
            self.W_down_t,
            self.act_fn.threshold,
            up_bias=self.up_proj.bias,
            down_bias=self.down_proj.bias,
            backend=self.backend,
        )

    def _is_sparse(self, x: Tensor) -> bool:
        tokens = x.numel() // max(1, x.shape[-1])
        if not 0 < tokens <= self.max_tokens or x.is_meta or torch.is_autocast_enabled(x.device.type):
            return False
        weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        return all(weight.dtype == x.dtype for weight in weights) and not wants_gradient(x, *weights)

    def extra_repr(self) -> str:
        """The backend and the most tokens of the sparse path."""
        return f"backend={self.backend!r}, max_tokens={self.max_tokens}"


def sparsify(
    model: nn.Module,
    threshold: Threshold | None = None,
    *,
    backend: str = "auto",
    max_tokens: int = 8,
    predictors: Sequence[nn.Module] | None = None,
) -> nn.Module:
    """Replace every gated MLP of `model` by a `SparseGatedMLP`, in place, and return the model.

    Layers are converted one after the other, so at most one W_down is held twice at a time. An MLP that stands in
    several places stays shared. Nothing is changed where one of them cannot be converted. A model that is a gated MLP
    itself is returned converted, and stays as it is.

    Args:
        model: e.g. a causal language model of transformers, after `relufy` or with the ReLU it was trained with.
        threshold, backend, max_tokens: as of `SparseGatedMLP.from_dense`.
        predictors: one a gated MLP, in the order of the model (`fit_predictors`).

    Raises:
        ValueError: no gated MLP, one that cannot be converted, or another number of predictors.
        TypeError: a quantised or adapted projection.
    """
    found = find_gated_mlps(model)
    if predictors is not None and len(predictors) != len(found):
        raise ValueError(f"predictors: got {len(predictors)}, wanted {len(found)}, one a gated MLP")
    for name, module in found:
        try:
            _check_convertible(module, threshold)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name or 'model'}: {error}") from error
    names = [name for name, _ in found]
    del found  # which would keep the dense weights
    for place, name in enumerate(names):
        dense = model.get_submodule(name)
        predictor = None if predictors is None else predictors[place]
        made = SparseGatedMLP.from_dense(dense, threshold, backend=backend, max_tokens=max_tokens, predictor=predictor)
        if dense is model:
            return made
        for parent in list(model.modules()):
            for child in [child for child, module in parent._modules.items() if module is dense]:
                setattr(parent, child, made)
    return model


def _check_projections(gate_proj: Any, up_proj: Any, down_proj: Any) -> None:
    for name, linear in zip(PROJECTIONS, (gate_proj, up_proj, down_proj), strict=True):
        known = type(linear) in (nn.Linear, TransposedLinear)
        plain = known and type(linear.weight) is nn.Parameter and linear.weight.is_floating_point()
        if not plain or hasattr(linear, "_hf_hook"):
            weight = getattr(linear, "weight", None)
            got = f"{type(linear).__module__}.{type(linear).__name__} with a {type(weight).__name__} as weight"
            raise TypeError(
                f"{name}: got {got}, wanted a plain torch.nn.Linear of floating weights: dequantise it, merge its "
                "adapters, and load the model without offloading"
            )
    d_ff, d = gate_proj.weight.shape
    shapes = [tuple(linear.weight.shape) for linear in (gate_proj, up_proj, down_proj)]
    if shapes != [(d_ff, d), (d_ff, d), (d, d_ff)]:
        raise ValueError(f"{', '.join(PROJECTIONS)}: got weights of {shapes}, wanted (d_ff, d) twice and (d, d_ff)")
    places = {(linear.weight.device, linear.weight.dtype) for linear in (gate_proj, up_proj, down_proj)}
    if len(places) > 1:
        raise ValueError(f"{', '.join(PROJECTIONS)}: got {places}, wanted one device and one dtype")


def _check_convertible(mlp: nn.Module, threshold: Threshold | None) -> None:
    parts: list[Any] = [getattr(mlp, name, None) for name in (*PROJECTIONS, "act_fn")]
    if None in parts:
        raise ValueError(f"mlp: got {type(mlp).__name__}, wanted a module with {', '.join(PROJECTIONS)} and act_fn")
    gate_proj, up_proj, down_proj, act_fn = parts
    _check_projections(gate_proj, up_proj, down_proj)
    is_relu = isinstance(act_fn, FATReLU | nn.ReLU) or act_fn in (torch.relu, functional.relu)
    if threshold is None and not is_relu:
        kind = getattr(act_fn, "__name__", type(act_fn).__name__)
        raise ValueError(f"threshold: got None for an MLP with {kind}, wanted FATReLU or ReLU (relufy), or a threshold")
    if gate_proj.weight.is_meta or isinstance(mlp, SparseGatedMLP):
        return
    with torch.no_grad():
        # models have MLPs of these parts that do more, such as a top-k of their own
        probe = torch.linspace(-1, 1, gate_proj.in_features).to(gate_proj.weight)[None]
        formula = down_proj(act_fn(gate_proj(probe)) * up_proj(probe))
        if not torch.allclose(mlp(probe), formula, rtol=1e-2, atol=1e-2 * float(formula.abs().max()), equal_nan=True):
            raise ValueError(
                f"mlp: {type(mlp).__name__} computes more than down_proj(act_fn(gate_proj(x)) * up_proj(x))"
            )


def _frozen(linear: nn.Linear, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    made = kind(linear.in_features, linear.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return made


def _transposed(linear: nn.Linear) -> nn.Linear:
    """With its weight laid out as in `TransposedLinear`."""
    if not linear.weight.t().is_contiguous():
        laid_out = linear.weight.detach().t().contiguous().t()
        linear.weight = nn.Parameter(laid_out, requires_grad=linear.weight.requires_grad)
    return linear


def _lay_out(module: SparseGatedMLP, incompatible_keys: object) -> None:
    _transposed(module.down_proj)  # loading with assign=True brings weights that lie the other way
