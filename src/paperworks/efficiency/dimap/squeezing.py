"""Cut what a mask left useless: hidden neurons and attention heads whose contribution is a constant."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.efficiency.dimap.masks import Masks, masked_by
from paperworks.surgery.swin_parts import Attention, Mlp, Patterns, find_attentions, find_mlps, find_modules

__all__ = ["squeeze"]


def squeeze(model: nn.Module, *, patterns: Patterns | None = None) -> nn.Module:
    """A smaller dense copy of a pruned model with the same output in eval mode, to rounding.

    A neuron of an MLP goes if its row of fc1 is 0, so that it gives act(bias) whatever the input, or if its column of
    fc2 is 0. A head goes if all its value weights are 0, so that it gives its value bias, or if its columns of the
    output projection are 0. The constants go into the bias of the layer after. What is not certain stays: an MLP whose
    activation is not one module on each neuron alone, a constant without a bias to go into, an attention that does not
    compute the same with fewer heads (torchvision's), the last neuron or head of a layer.

    Args:
        model: with masks attached (they are taken off in the copy) or with zeros in its weights.
        patterns: see `find_modules`.

    Raises:
        ValueError: no prunable layer.
        TypeError: weights on the meta device.
    """
    small = copy.deepcopy(model)
    linears = [pair for pairs in find_modules(small, patterns).values() for pair in pairs]
    if not linears:
        raise ValueError(f"model: got {type(model).__name__} without layers that find_modules finds")
    if any(linear.weight.is_meta for _, linear in linears):
        raise TypeError("model: got weights on the meta device, wanted weights with values")
    masked = [(name, masked_by(linear)) for name, linear in linears]
    Masks({f"{name}.weight": kept.weight_mask for name, kept in masked if kept is not None}).remove(small)
    with torch.no_grad():
        for mlp in find_mlps(small, patterns):
            _squeeze_mlp(mlp)
        for attention in find_attentions(small, patterns):
            _squeeze_attention(small, attention)
    return small


def _squeeze_mlp(mlp: Mlp) -> None:
    """Cut dead neurons where the MLP computes the same without them: not with an activation across neurons."""
    (_, fc1), (_, fc2) = mlp.fc1, mlp.fc2
    act = mlp.activation
    if act is None or any(p.numel() > 1 for p in act.parameters()):
        return
    unused = (fc2.weight == 0).all(0)
    constant = (fc1.weight == 0).all(1) & ~unused
    if fc2.bias is None:
        constant.zero_()
    kept = ~(unused | constant)
    if not kept.any():
        kept[0], constant[0] = True, False
    if kept.all():
        return
    bias, tokens = fc2.bias, _tokens(fc1)
    first = copy.deepcopy(fc1)
    _keep_rows(first, kept)
    if bias is not None:
        given = fc1.bias if fc1.bias is not None else torch.zeros_like(fc1.weight[:, 0])
        bias = bias + fc2.weight[:, constant] @ act(given)[constant]
    smaller = functional.linear(act(first(tokens)), fc2.weight[:, kept], bias)
    if not _close(fc2(act(fc1(tokens))), smaller):
        return
    _keep_rows(fc1, kept)
    _keep_columns(fc2, kept)
    if fc2.bias is not None and bias is not None:
        fc2.bias.copy_(bias)


def _tokens(linear: nn.Linear) -> Tensor:
    """Eight random inputs of a layer."""
    made = torch.randn(8, linear.in_features, generator=torch.Generator().manual_seed(0))
    return made.to(linear.weight)


def _close(before: Tensor, after: Tensor) -> bool:
    tolerance = 1e-2 if before.dtype in (torch.float16, torch.bfloat16) else 1e-5
    return before.shape == after.shape and bool(
        torch.allclose(before, after, rtol=tolerance, atol=tolerance * float(before.abs().max()))
    )


def _keep_rows(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[kept].clone(), linear.weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept].clone(), linear.bias.requires_grad)
    linear.out_features = len(linear.weight)


def _keep_columns(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[:, kept].clone(), linear.weight.requires_grad)
    linear.in_features = linear.weight.shape[1]


def _squeeze_attention(model: nn.Module, attention: Attention) -> None:
    """Cut dead heads in a copy of the attention, and put it in place where it computes the same."""
    found = _heads(attention)
    if found is None:
        return
    owner, counter, heads = found
    dead, constant = _dead_heads(attention, heads)
    if not dead.any():
        return
    if dead.all():
        dead[0] = False
    smaller = copy.deepcopy(attention.module)

    def twin(name: str) -> nn.Module:
        return smaller.get_submodule(name.removeprefix(attention.name).removeprefix("."))

    proj = twin(attention.proj[0])
    assert isinstance(proj, nn.Linear)
    kept = ~dead.repeat_interleave(proj.in_features // heads)
    if constant is not None:
        proj.bias.add_(proj.weight[:, ~kept] @ constant[~kept])
    _keep_columns(proj, kept)
    for name, _ in attention.qkv:
        linear = twin(name)
        assert isinstance(linear, nn.Linear)
        _keep_rows(linear, kept.repeat(linear.out_features // len(kept)))
    for module in smaller.modules():
        if (table := getattr(module, _TABLE, None)) is not None:
            setattr(module, _TABLE, nn.Parameter(table[:, ~dead].clone(), table.requires_grad))
    setattr(twin(owner), counter, heads - int(dead.sum()))
    if _same_on_a_window(attention.module, smaller):
        model.set_submodule(attention.name, smaller)


_TABLE = "relative_position_bias_table"


def _heads(attention: Attention) -> tuple[str, str, int] | None:
    """The module with the number of heads, the name and the number; None where heads cannot be cut.

    Beside the projections only the table of position biases may have parameters: others may belong to heads.
    """
    linears = [linear for _, linear in (*attention.qkv, attention.proj)]
    known = {id(p) for linear in linears for p in linear.parameters()}
    others = [n for n, p in attention.module.named_parameters() if id(p) not in known]
    if not attention.name or any(name.rpartition(".")[2] != _TABLE for name in others):
        return None
    for name, module in attention.module.named_modules(prefix=attention.name):
        for counter in ("num_heads", "num_attention_heads"):
            heads = getattr(module, counter, None)
            inner = attention.proj[1].in_features
            if isinstance(heads, int) and inner % heads == 0:
                rows = sum(linear.out_features for _, linear in attention.qkv)
                return (name, counter, heads) if rows == 3 * inner else None
    return None


def _dead_heads(attention: Attention, heads: int) -> tuple[Tensor, Tensor | None]:
    """Which heads only give a constant, and the value bias (inner width,); None where there is none to fold."""
    (_, proj), linears = attention.proj, [linear for _, linear in attention.qkv]
    value = torch.cat([linear.weight for linear in linears]).chunk(3)[2]
    unused = (proj.weight == 0).view(len(proj.weight), heads, -1).all(2).all(0)
    silent = (value == 0).view(heads, -1).all(1)
    if linears[-1].bias is None:
        return unused | silent, None
    if proj.bias is None:
        return unused, None
    return unused | silent, linears[-1].bias[-len(value) :]


def _same_on_a_window(attention: nn.Module, smaller: nn.Module) -> bool:
    """Whether both give the same on two random windows; False where one of them fails on such input."""
    sides = [getattr(module, "window_size", None) for module in attention.modules()]
    side = next((s for s in sides if s is not None), None)
    if side is None:
        return False
    tokens = side * side if isinstance(side, int) else side[0] * side[1]
    weight = next(attention.parameters())
    width = next(m for m in attention.modules() if isinstance(m, nn.Linear)).in_features
    windows = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(0)).to(weight)
    outputs = []
    for module in (attention, smaller):
        probe = copy.deepcopy(module).eval()
        try:
            output = probe(windows)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
        outputs.append(output[0] if isinstance(output, tuple) else output)
    return _close(*outputs)
