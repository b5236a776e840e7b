"""Activations with an exact forward pass and a slope of one or two bits a value in the backward pass.

    y = act(z),   dz = dy * s[code(z)],   z = a x + b for a whole ShiftOnlyNorm2d,   dx = a dz,   db = sum of dz

backward  | code                                         | slopes s
"sign"    | 1[z > 0]                                     | 0, 1
"exact"   | ReLU 1[z > 0], ReLU6 1[0 < z < 6]             | 0, 1; hard-swish and SiLU keep z itself
"two_bit" | [z >= -1.5] + [z >= 0] + [z >= 1.5]           | the bin's mean slope under N(0, 1); ReLU, ReLU6: "exact"
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from paperworks.efficiency.bits import pack_bits, unpack_bits
from paperworks.efficiency.mobiletl.kernels import BACKWARD_RULES, KINDS, kernels_of, layout_of, may_fuse

__all__ = [
    "SignedActivation",
    "SignedHardswish",
    "SignedReLU",
    "SignedReLU6",
    "SignedSiLU",
    "bin_slopes",
    "shifted_activation",
    "signed_activation",
]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}
_EDGES = (-1.5, 0.0, 1.5)


def signed_activation(x: Tensor, kind: str, *, backward: str = "sign", pack_bits: bool = True) -> Tensor:
    """The activation `kind` of `x`, exact; its gradient by the rule `backward`, kept in bits.

    Args:
        x: any shape, floating point.
        kind: "relu", "relu6", "hardswish" or "silu".
        backward: "sign" (dx = dy 1[x > 0]), "exact" or "two_bit" (see the module).
        pack_bits: keep eight values a byte. False keeps one byte a value.

    Returns:
        A tensor in the shape and dtype of `x`, differentiable once.

    Raises:
        ValueError: unknown `kind` or `backward`.
        TypeError: `x` is no floating point tensor.
    """
    check_rule(kind, backward)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: got {got}, want a floating point tensor")
    return shifted_activation(x, None, None, kind, backward, pack_bits)


class SignedActivation(nn.Module):
    """`signed_activation` as a module; the subclasses set `kind`.

    Raises:
        ValueError: unknown `backward`.
    """

    kind = "relu"

    def __init__(self, backward: str = "sign", *, pack_bits: bool = True) -> None:
        super().__init__()
        check_rule(self.kind, backward)
        self.backward_rule, self.pack_bits = backward, pack_bits

    def forward(self, x: Tensor) -> Tensor:
        return signed_activation(x, self.kind, backward=self.backward_rule, pack_bits=self.pack_bits)

    def extra_repr(self) -> str:
        return f"backward={self.backward_rule!r}, pack_bits={self.pack_bits}"


class SignedReLU(SignedActivation):
    """ReLU; the sign rule is exact."""

    kind = "relu"


class SignedReLU6(SignedActivation):
    """min(max(x, 0), 6); the sign rule lets the gradient pass above 6, "exact" does not."""

    kind = "relu6"


class SignedHardswish(SignedActivation):
    """x min(max(x + 3, 0), 6) / 6."""

    kind = "hardswish"


class SignedSiLU(SignedActivation):
    """x / (1 + exp(-x))."""

    kind = "silu"


def check_rule(kind: str, backward: str) -> None:
    """Raise ValueError for an unknown activation or backward rule, with the known ones."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, want one of {', '.join(KINDS)}")
    if backward not in BACKWARD_RULES:
        raise ValueError(f"backward: got {backward!r}, want one of {', '.join(BACKWARD_RULES)}")


def shifted_activation(x: Tensor, a: Tensor | None, b: Tensor | None, kind: str, backward: str, packed: bool) -> Tensor:
    """act(a x + b), a constant and b trainable, one of each a channel (dimension 1); None for a plain activation.

    On CPU (float32, bfloat16) and CUDA the shift, the activation and the packing are one pass, as is the backward.
    Half types are computed in float32.
    """
    if backward == "exact" and kind in ("hardswish", "silu"):
        return _FUNCTIONS[kind](affine(x, a, b))
    # Decided here, once: inside the function a transform may be out of sight, and both passes have to agree.
    fused = packed and may_fuse(x)
    y, _ = _ShiftedActivation.apply(x, a, b, kind, backward, packed, fused)
    return y


def affine(x: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    """a x + b by channel in the dtype of `x`. Autograd keeps `a` alone: x is needed for no gradient."""
    if a is None or b is None:
        return x
    shape = (1, -1, *[1] * (x.dim() - 2))
    wide = x.to(torch.promote_types(x.dtype, a.dtype))
    return (wide * a.view(shape) + b.view(shape)).to(x.dtype)


def _slope(z: Tensor, kind: str) -> Tensor:
    if kind == "hardswish":
        return torch.where(z >= 3, 1.0, torch.where(z <= -3, 0.0, (2 * z + 3) / 6))
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


def _mean_slopes(kind: str) -> tuple[float, ...]:
    """E[f'(z) | z in the bin] for z ~ N(0, 1), summed over a grid of step 0.0005."""
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64, device="cpu")
    weight = torch.exp(-0.5 * z * z)
    code = torch.bucketize(z, torch.tensor(_EDGES, dtype=torch.float64, device="cpu"), right=True)
    slope = _slope(z, kind)
    return tuple(float((slope * weight)[code == i].sum() / weight[code == i].sum()) for i in range(4))


_FOUR_SLOPES = {kind: _mean_slopes(kind) for kind in ("hardswish", "silu")}


def bin_slopes(kind: str, backward: str) -> tuple[float, ...]:
    """The slope of each code: (0, 1) for one bit, four numbers for two.

    Of the four, each is the mean slope of its bin under a standard normal input, the constant that is nearest in mean
    squares: what a norm with scale 1 and shift 0 feeds the activation.
    """
    return _FOUR_SLOPES[kind] if backward == "two_bit" and kind in _FOUR_SLOPES else (0.0, 1.0)


def _codes(z: Tensor, kind: str, backward: str) -> list[Tensor]:
    """The bits of the code of every value, low bit first, as bool tensors of the shape of z."""
    if backward == "two_bit" and kind in ("hardswish", "silu"):
        low, zero, high = (z >= edge for edge in _EDGES)
        return [low ^ zero ^ high, zero]
    if kind == "relu6" and backward != "sign":
        return [(z > 0) & (z < 6)]
    return [z > 0]


def _composite(x: Tensor, a: Tensor | None, b: Tensor | None, kind: str, backward: str) -> tuple[Tensor, list[Tensor]]:
    wide = torch.promote_types(x.dtype, torch.float32)
    z = affine(x.to(wide), a, b)
    return _FUNCTIONS[kind](z).to(x.dtype), _codes(z, kind, backward)


def _composite_gradients(
    g: Tensor, a: Tensor | None, bits: list[Tensor], slopes: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """dx in the dtype of g, and dz in float32 or more."""
    wide = g.to(torch.promote_types(g.dtype, torch.float32 if a is None else a.dtype))
    if len(slopes) == 2:
        dz = wide * bits[0]
    else:
        s = [torch.full((), value, dtype=wide.dtype, device=g.device) for value in slopes]
        dz = wide * torch.where(bits[1], torch.where(bits[0], s[3], s[2]), torch.where(bits[0], s[1], s[0]))
    dx = dz if a is None else dz * a.view(1, -1, *[1] * (g.dim() - 2))
    return dx.to(g.dtype), dz


def _kept(bits: list[Tensor], packed: bool) -> Tensor:
    """The bits as the one tensor that is kept: packed planes one after the other, or a bool tensor a plane."""
    if packed:
        return torch.cat([pack_bits(plane) for plane in bits]) if len(bits) > 1 else pack_bits(bits[0])
    return torch.stack(bits)


def _restored(kept: Tensor, shape: torch.Size) -> list[Tensor]:
    if kept.dtype == torch.bool:
        return list(kept)
    size = -(-math.prod(shape) // 8)
    return [unpack_bits(plane, shape) for plane in kept.split(size)] if size else [kept.bool().view(shape)] * 2


class _ShiftedActivation(torch.autograd.Function):
    """Returns y and, for its own backward, the kept bits (in the order of memory where a kernel made them)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, a: Tensor | None, b: Tensor | None, kind: str, backward: str, packed: bool, fused: bool
    ) -> tuple[Tensor, Tensor]:
        if fused:
            return kernels_of(x).forward(x, a, b, layout_of(x, a), kind, backward)
        y, bits = _composite(x, a, b, kind, backward)
        return y, _kept(bits, packed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, a, b, ctx.kind, ctx.backward_rule, _, fused = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], a)
        ctx.layout = layout_of(x, a) if fused else None  # kernels keep the bits in the order of memory
        ctx.shape, ctx.b_dtype = x.shape, None if b is None else b.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        kept, a = ctx.saved_tensors
        if g is None:
            return (None,) * 7
        slopes = bin_slopes(ctx.kind, ctx.backward_rule)
        if ctx.layout is not None:
            dx, db = kernels_of(g).backward(g, kept, a, ctx.layout, slopes)
        else:
            dx, dz = _composite_gradients(g, a, _restored(kept, ctx.shape), slopes)
            db = None if a is None else dz.sum([d for d in range(g.dim()) if d != 1])
        return dx, None, None if db is None or ctx.b_dtype is None else db.to(ctx.b_dtype), None, None, None, None
