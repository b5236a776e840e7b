"""The C loops of `sparse_ffn.c` on tensors: steps 1 to 3 of the sparse feed-forward network on a CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from paperworks import native

_PIECES = 64  # as in sparse_ffn.c: they decide the room that partial sums take
_TOKENS = 16  # a call to C; more are taken in turns, so that what they share stays in cache
_SHARE = 1 << 15  # weights that are worth a thread
_SUFFIXES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}


def available(dtype: torch.dtype) -> bool:
    """Whether there are loops for weights of this dtype, and a compiler for them."""
    return dtype in _SUFFIXES and _library() is not None


def rows(x: Tensor, W: Tensor, bias: Tensor | None, index: Tensor | None) -> Tensor:
    """x W^T + bias for x (tokens, d): (tokens, d_ff), or only its columns `index`, the others 0; in the sums' dtype."""
    wide, run = _wide(W.dtype), getattr(_library(), f"rows_{_SUFFIXES[W.dtype]}")
    (d_ff, d), tokens = W.shape, len(x)
    x, W, bias = _plain(x, wide), W.detach().contiguous(), None if bias is None else _plain(bias, wide)
    index = None if index is None else index.to(torch.int32)
    n = d_ff if index is None else len(index)
    out = torch.zeros(tokens, d_ff, dtype=wide, device="cpu")
    room = torch.empty(min(_TOKENS, tokens) * d, dtype=wide, device="cpu")
    for part, to in zip(x.split(_TOKENS), out.split(_TOKENS), strict=True):
        pointers = [_pointer(t) for t in (part, W, bias, index, to, room)]
        run(*pointers, len(part), n, d, d_ff, _threads(n * d))
    return out


def ffn(x: Tensor, gate: Tensor, W_up: Tensor, W_down_t: Tensor, threshold: Tensor, up_bias: Tensor | None) -> Tensor:
    """Steps 2 and 3 for x (tokens, d) and gate (tokens, d_ff): (tokens, d) in the sums' dtype."""
    wide = _wide(W_up.dtype)
    bias = None if up_bias is None else _plain(up_bias, wide)
    return _run(
        _plain(x, wide), _plain(gate, wide), _plain(threshold, wide), W_up.detach().contiguous(), bias, W_down_t
    )


def down(x1: Tensor, W_down_t: Tensor) -> Tensor:
    """Step 3 alone for x1 (tokens, d_ff): (tokens, d) in the sums' dtype."""
    return _run(None, _plain(x1, _wide(W_down_t.dtype)), None, None, None, W_down_t)


def _run(
    x: Tensor | None, gate: Tensor, limit: Tensor | None, W_up: Tensor | None, bias: Tensor | None, W_down_t: Tensor
) -> Tensor:
    function, down = getattr(_library(), f"ffn_{_SUFFIXES[W_down_t.dtype]}"), W_down_t.detach().contiguous()
    (d_ff, d), tokens = down.shape, len(gate)
    y = torch.empty(tokens, d, dtype=gate.dtype, device="cpu")
    index = torch.empty(d_ff, dtype=torch.int32, device="cpu")
    room = torch.empty(min(_TOKENS, tokens) * d * (1 + _PIECES), dtype=gate.dtype, device="cpu")
    step = 0 if limit is None else min(1, limit.ndim)
    for begin in range(0, tokens, _TOKENS):
        turn = slice(begin, begin + _TOKENS)
        before = [_pointer(t) for t in (None if x is None else x[turn], gate[turn], limit)]
        after = [_pointer(t) for t in (W_up, bias, down, y[turn], index, room)]
        function(*before, step, *after, len(y[turn]), d, d_ff, _threads(d_ff * d))
    return y


def _library() -> ctypes.CDLL | None:
    pointer, size, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    functions: dict[str, list[type]] = {}
    for suffix in _SUFFIXES.values():
        functions[f"rows_{suffix}"] = [pointer] * 6 + [size] * 4 + [threads]
        functions[f"ffn_{suffix}"] = [pointer] * 3 + [size] + [pointer] * 6 + [size] * 3 + [threads]
    return native.load(Path(__file__).with_name("sparse_ffn.c"), functions)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threads(weights: int) -> int:
    return max(1, min(torch.get_num_threads(), weights // _SHARE))
