"""Count the parameters of a model."""

from torch import nn
from torch.nn.parameter import UninitializedParameter

__all__ = ["count_parameters"]


def count_parameters(model: nn.Module, trainable: bool | None = None) -> int:
    """Number of scalar parameters of `model`; a parameter used in several places counts once, buffers do not count.

    Args:
        model: any module.
        trainable: None counts all, True those with `requires_grad`, False the frozen ones.

    Raises:
        TypeError: `model` is no `nn.Module`.
        ValueError: a lazy parameter has no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    count = 0
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"model: {name!r} has no shape yet; run one forward pass before counting")
        if trainable is None or parameter.requires_grad == trainable:
            count += parameter.numel()
    return count
