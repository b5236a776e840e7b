"""The feed-forward network of a sparse gated MLP, reading only the weights that the token needs.

    x1_j = g_j (<x, up_j> + b_j)  where g_j >= t_j, else 0;      y = sum_j x1_j down_j          (Eq. 1, 3)

g = x W_gate^T is computed whole (step 1); then only the rows of W_up (step 2) and of W_down^T (step 3) of the active j
are read. It is exact: the terms left out are zeros. A token reads 1 + 2 (1 - sparsity) of 3 parts of the weights, which
bounds the gain of the whole network at batch 1, where reading the weights is all the time there is.

On a CPU one pass in C does it (`sparse_ffn.c`); on a GPU Triton kernels do, without waiting for the number of active
rows; elsewhere, and where a dispatch mode counts operations, tensor operations.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from paperworks.efficiency.prosparse import sparse_native

BACKENDS = ("auto", "torch", "triton")
_GATHERED = 64  # rows copied at a time by tensor operations: they stay in cache until they are multiplied
_TRITON_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def ffn_weights(d: int, d_ff: int, sparsity: float) -> tuple[float, int]:
    """The weights that steps 1-3 read for a token, d_ff d (1 + 2 (1 - sparsity)), and all of them, 3 d_ff d.

    Args:
        d, d_ff: width of the model and of its feed-forward network.
        sparsity: the share of zeros in x1, 0 to 1.

    Raises ValueError for sizes below 1 or a sparsity outside [0, 1].
    """
    if d < 1 or d_ff < 1:
        raise ValueError(f"d, d_ff: got {d}, {d_ff}, wanted 1 or more")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: got {sparsity}, wanted a share from 0 to 1")
    return d_ff * d * (1 + 2 * (1 - sparsity)), 3 * d_ff * d


def sparse_ffn(
    x: Tensor,
    gate: Tensor,
    W_up: Tensor,
    W_down_t: Tensor,
    threshold: float | Tensor = 0.0,
    *,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Steps 2 and 3: (FATReLU(gate) * (x W_up^T + up_bias)) W_down_t + down_bias over the active rows only.

    The rows where gate >= threshold are active, and those where gate is NaN, so that it shows in the result. Rows that
    no token needs are not read: an infinity or NaN in them does not count, other than in a dense product. C and Triton
    sum half precision in float32 and do not round x1 in between, in an order that no number of threads changes.

    It is for inference. Where a gradient is asked for, forward mode or a transform of `torch.func` is at work, or an
    argument is on the meta device, the dense formula runs, so the result and all gradients are right, at dense cost.

    Args:
        x: (..., d) floating.
        gate: (..., d_ff), x W_gate^T with its bias, before the activation.
        W_up, W_down_t: (d_ff, d) each, best contiguous (others are copied at every call). W_down_t is the transpose of
            `down_proj.weight`.
        threshold: t >= 0, or one a channel, (d_ff,).
        up_bias, down_bias: (d_ff,) and (d,).
        backend: "auto" takes C on a CPU (tensor operations for float16 or without a compiler) and Triton on a GPU that
            has it; "torch" takes tensor operations; "triton" wants CUDA tensors, or Triton's interpreter.

    Returns:
        (..., d) in the dtype of `x`.

    Raises:
        ValueError: shapes that do not fit, a negative threshold, an unknown or unusable backend.
        TypeError: dtypes that are not floating or not the same.
    """
    check_operands(x, gate, W_up, W_down_t, up_bias, down_bias)
    check_backend(backend, x)
    t = _threshold(threshold, gate)
    if torch.compiler.is_compiling():
        if not wants_gradient(x, gate, W_up, W_down_t, up_bias, down_bias):
            return _ffn_operator(x, gate, W_up, W_down_t, t, up_bias, down_bias, backend)
    elif not _wants_formula(x, gate, W_up, W_down_t, t, up_bias, down_bias):
        return _ffn(x, gate, W_up, W_down_t, t, up_bias, down_bias, backend)
    with _without_autocast(x):
        return transposed_linear(gate.masked_fill(gate < t, 0.0) * F.linear(x, W_up, up_bias), W_down_t, down_bias)


def gate_product(
    x: Tensor, W_gate: Tensor, bias: Tensor | None = None, candidates: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Step 1 for a few tokens: x W_gate^T + bias, (..., d) -> (..., d_ff), or only the rows that a predictor names.

    All rows are `torch.nn.functional.linear`'s, bit for bit, other than in bfloat16 on a CPU: there C is twice as fast
    and rounds the same float32 sums, added in another order. A gradient and `torch.func` are served as in
    `sparse_ffn`.

    Args:
        x: (..., d) floating.
        W_gate, bias: (d_ff, d) and (d_ff,).
        candidates: (..., d_ff) bool; the others are taken as inactive, and get -inf.
        backend: as in `sparse_ffn`.

    Raises as `sparse_ffn`.
    """
    check_operands(x, None, W_gate, None, bias, None)
    check_backend(backend, x)
    wanted = (*x.shape[:-1], len(W_gate))
    if candidates is not None and (candidates.shape != wanted or candidates.dtype != torch.bool):
        got = f"{tuple(candidates.shape)} {candidates.dtype}"
        raise ValueError(f"candidates: got {got}, wanted {tuple(wanted)} torch.bool")
    if torch.compiler.is_compiling():
        if not wants_gradient(x, W_gate, bias):
            return _gate_operator(x, W_gate, bias, candidates, backend)
    elif not _wants_formula(x, W_gate, bias, candidates):
        return _gate(x, W_gate, bias, candidates, backend)
    with _without_autocast(x):
        gate = F.linear(x, W_gate, bias)
    return gate if candidates is None else gate.masked_fill(~candidates, -torch.inf)


def sparse_up(
    x: Tensor,
    gate: Tensor,
    W_up: Tensor,
    threshold: float | Tensor = 0.0,
    *,
    up_bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Step 2 alone: x1 = FATReLU(gate) * (x W_up^T + up_bias), (..., d_ff), reading only the active rows of W_up.

    Arguments and errors are those of `sparse_ffn`.
    """
    check_operands(x, gate, W_up, None, up_bias, None)
    idle = gate < _threshold(threshold, gate)
    up = gate_product(x, W_up, up_bias, ~idle, backend=backend)
    return gate.masked_fill(idle, 0.0) * up.masked_fill(idle, 0.0)


def sparse_down(x1: Tensor, W_down_t: Tensor, *, down_bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Step 3 alone: x1 W_down_t + down_bias, (..., d_ff) -> (..., d), reading only the rows where x1 is not 0.

    It serves any feed-forward network with zeros before its last product. Arguments and errors are those of
    `sparse_ffn`.
    """
    if W_down_t.ndim != 2 or x1.ndim < 1 or x1.shape[-1] != W_down_t.shape[0]:
        raise ValueError(f"x1, W_down_t: got {tuple(x1.shape)}, {tuple(W_down_t.shape)}, wanted (..., d_ff), (d_ff, d)")
    check_operands(x1, None, W_down_t.t(), None, None, None)
    if down_bias is not None and down_bias.shape != W_down_t.shape[1:]:
        raise ValueError(f"down_bias: got shape {tuple(down_bias.shape)}, wanted ({W_down_t.shape[1]},)")
    check_backend(backend, x1)
    if torch.compiler.is_compiling():
        if not wants_gradient(x1, W_down_t, down_bias):
            return _down_operator(x1, W_down_t, down_bias, backend)
    elif not _wants_formula(x1, W_down_t, down_bias):
        return _down(x1, W_down_t, down_bias, backend)
    with _without_autocast(x1):
        return transposed_linear(x1, W_down_t, down_bias)


def transposed_linear(x: Tensor, W_t: Tensor, bias: Tensor | None) -> Tensor:
    """x W_t + bias, dense: a linear layer whose weight lies transposed in memory, W_t (n, m) for x (..., n)."""
    weight = W_t.t()
    if x.device.type == "cpu" and (x.dtype.itemsize == 2 or torch.is_autocast_enabled("cpu")):
        # a CPU without instructions for half precision takes tens of times as long to multiply with the transpose
        weight = weight.contiguous()
    return F.linear(x, weight, bias)


def check_operands(
    x: Tensor, gate: Tensor | None, W_up: Tensor, W_down_t: Tensor | None, up_bias: Tensor | None, bias: Tensor | None
) -> None:
    """Raise where shapes or dtypes do not fit each other."""
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, wanted a floating dtype")
    if W_up.ndim != 2 or x.ndim < 1 or x.shape[-1] != W_up.shape[1]:
        raise ValueError(f"x, weight: got {tuple(x.shape)} and {tuple(W_up.shape)}, wanted (..., d) and (d_ff, d)")
    d_ff, d = W_up.shape
    for name, tensor, shape in (
        ("gate", gate, (*x.shape[:-1], d_ff)),
        ("W_down_t", W_down_t, (d_ff, d)),
        ("up_bias" if gate is not None else "bias", up_bias, (d_ff,)),
        ("down_bias", bias, (d,)),
    ):
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, wanted {tuple(shape)}")
    for name, tensor in (("gate", gate), ("weight", W_up), ("W_down_t", W_down_t), ("bias", up_bias), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name}: got {tensor.dtype}, wanted that of x, {x.dtype}")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, wanted one on {x.device}, as x")


def check_backend(backend: str, x: Tensor | None = None) -> None:
    """Raise ValueError for an unknown backend, or Triton where it cannot run."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, wanted one of {', '.join(BACKENDS)}")
    if backend == "triton" and x is not None and not (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError(f"backend: got 'triton' for a tensor on {x.device}, wanted one on a CUDA device")


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a graph would be recorded over `tensors`."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _wants_formula(*tensors: Tensor | None) -> bool:
    return (
        wants_gradient(*tensors)
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(t is not None and (t.is_meta or type(t) not in (Tensor, torch.nn.Parameter)) for t in tensors)
    )


def _threshold(threshold: float | Tensor, gate: Tensor) -> Tensor:
    """As a tensor, () in the dtype of the gate or (d_ff,) in its own: what a comparison with the gate makes of it."""
    if not isinstance(threshold, Tensor):
        if not threshold >= 0:
            raise ValueError(f"threshold: got {threshold}, wanted 0 or more")
        return torch.full((), threshold, dtype=gate.dtype, device=gate.device)
    if threshold.ndim > 1 or (threshold.ndim and len(threshold) != gate.shape[-1]):
        raise ValueError(f"threshold: got shape {tuple(threshold.shape)}, wanted () or ({gate.shape[-1]},)")
    if threshold.ndim and threshold.device != gate.device:
        raise ValueError(f"threshold: got a tensor on {threshold.device}, wanted one on {gate.device}, as the gate")
    # the values of a tensor elsewhere are not looked at: it would wait for the device
    readable = threshold.device.type == "cpu" and not torch.compiler.is_compiling() and type(threshold) is Tensor
    if readable and not torch._C._are_functorch_transforms_active() and not bool((threshold >= 0).all()):
        raise ValueError(f"threshold: got {float(threshold.min())}, wanted 0 or more")
    return threshold if threshold.ndim else threshold.to(gate)


@torch.library.custom_op("paperworks::sparse_ffn", mutates_args=())
def _ffn_operator(
    x: Tensor,
    gate: Tensor,
    W_up: Tensor,
    W_down_t: Tensor,
    threshold: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    backend: str,
) -> Tensor:
    return _ffn(x, gate, W_up, W_down_t, threshold, up_bias, down_bias, backend)


@torch.library.custom_op("paperworks::gate_product", mutates_args=())
def _gate_operator(x: Tensor, W_gate: Tensor, bias: Tensor | None, candidates: Tensor | None, backend: str) -> Tensor:
    return _gate(x, W_gate, bias, candidates, backend)


@torch.library.custom_op("paperworks::sparse_down", mutates_args=())
def _down_operator(x1: Tensor, W_down_t: Tensor, down_bias: Tensor | None, backend: str) -> Tensor:
    return _down(x1, W_down_t, down_bias, backend)


@_ffn_operator.register_fake
def _(
    x: Tensor,
    gate: Tensor,
    W_up: Tensor,
    W_down_t: Tensor,
    threshold: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    backend: str,
) -> Tensor:
    return x.new_empty(x.shape)


@_gate_operator.register_fake
def _(x: Tensor, W_gate: Tensor, bias: Tensor | None, candidates: Tensor | None, backend: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], W_gate.shape[0]))


@_down_operator.register_fake
def _(x1: Tensor, W_down_t: Tensor, down_bias: Tensor | None, backend: str) -> Tensor:
    return x1.new_empty((*x1.shape[:-1], W_down_t.shape[1]))


def _ffn(
    x: Tensor,
    gate: Tensor,
    W_up: Tensor,
    W_down_t: Tensor,
    threshold: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    backend: str,
) -> Tensor:
    rows, gates = x.reshape(-1, x.shape[-1]), gate.reshape(-1, gate.shape[-1])
    engine = _engine(backend, x, W_up.numel())
    if engine == "triton":
        from paperworks.efficiency.prosparse import sparse_ffn_triton

        y = sparse_ffn_triton.ffn(rows, gates, W_up, W_down_t, threshold, up_bias)
    elif engine == "native":
        y = sparse_native.ffn(rows, gates, W_up, W_down_t, threshold, up_bias)
    else:
        y = _torch_ffn(rows, gates, W_up, W_down_t, threshold, up_bias)
    return (y if down_bias is None else y + down_bias).to(x.dtype).reshape(x.shape)


def _down(x1: Tensor, W_down_t: Tensor, down_bias: Tensor | None, backend: str) -> Tensor:
    rows, engine = x1.reshape(-1, x1.shape[-1]), _engine(backend, x1, W_down_t.numel())
    if engine == "triton":
        from paperworks.efficiency.prosparse import sparse_ffn_triton

        y = sparse_ffn_triton.down(rows, W_down_t)
    elif engine == "native":
        y = sparse_native.down(rows, W_down_t)
    else:
        y = x1.new_zeros(len(rows), W_down_t.shape[1])
        for token, to in zip(rows, y, strict=True):
            _torch_down(token, token.nonzero().flatten(), W_down_t, to)
    y = y if down_bias is None else y + down_bias
    return y.to(x1.dtype).reshape(*x1.shape[:-1], W_down_t.shape[1])


def _gate(x: Tensor, W_gate: Tensor, bias: Tensor | None, candidates: Tensor | None, backend: str) -> Tensor:
    rows, d_ff = x.reshape(-1, x.shape[-1]), len(W_gate)
    engine = _engine(backend, x, W_gate.numel())
    if candidates is None:
        if engine != "native" or x.dtype != torch.bfloat16:
            # the very numbers of a dense network: one that is equal to its threshold must not fall to the other side
            with _without_autocast(x):
                return F.linear(x, W_gate, bias)
        return sparse_native.rows(rows, W_gate, bias, None).to(x.dtype).reshape(*x.shape[:-1], d_ff)
    named = candidates.reshape(-1, d_ff)
    if engine == "triton":
        from paperworks.efficiency.prosparse import sparse_ffn_triton

        out = sparse_ffn_triton.gate(rows, W_gate, bias, named)
    else:
        index = named.any(0).nonzero().flatten()
        if engine == "native":
            out = sparse_native.rows(rows, W_gate, bias, index)
        else:
            part = F.linear(rows, W_gate.index_select(0, index), None if bias is None else bias.index_select(0, index))
            out = part.new_zeros(len(rows), d_ff).index_copy(1, index, part)
        out = out.masked_fill(~named, -torch.inf)
    return out.to(x.dtype).reshape(*x.shape[:-1], d_ff)


def _engine(backend: str, x: Tensor, weights: int) -> str:
    """native, triton or torch."""
    if not x.numel() or not weights or torch._C._len_torch_dispatch_stack() > 0:
        return "torch"  # nothing to read, or somebody counts operations
    if backend == "triton":
        return "triton"
    if backend == "auto" and x.is_cuda and x.dtype in _TRITON_TYPES and importlib.util.find_spec("triton") is not None:
        return "triton"
    if backend == "auto" and x.device.type == "cpu" and sparse_native.available(x.dtype):
        return "native"
    return "torch"


def _torch_ffn(
    x: Tensor, gate: Tensor, W_up: Tensor, W_down_t: Tensor, threshold: Tensor, up_bias: Tensor | None
) -> Tensor:
    y = x.new_zeros(x.shape)
    with _without_autocast(x):
        for token, gates, active, to in zip(x, gate, ~(gate < threshold), y, strict=True):
            index = active.nonzero().flatten()
            if not len(index):
                continue
            h = torch.cat([F.linear(token, W_up.index_select(0, part)) for part in index.split(_GATHERED)])
            h = gates.index_select(0, index) * (h if up_bias is None else h + up_bias.index_select(0, index))
            x1 = torch.zeros_like(gates).index_copy(0, index, h)
            _torch_down(x1, index, W_down_t, to)
    return y


def _torch_down(x1: Tensor, index: Tensor, W_down_t: Tensor, y: Tensor) -> None:
    """sum over `index` of x1_j W_down_t[j] into y, by a weighted `embedding_bag`, which copies no row."""
    if len(index):
        h = x1.index_select(0, index)[None]
        y.copy_(F.embedding_bag(index[None], W_down_t, mode="sum", per_sample_weights=h)[0])
