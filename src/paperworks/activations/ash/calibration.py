"""Percentiles of a whole network: read them, set them from data, and freeze the statistics for deployment."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.activations.ash.modules import ASH, FoldedASH, PercentileGate
from paperworks.surgery.recording import watching

_BINS, _RANGE = 4096, 8.0  # of the standardised values, within which a percentile is interpolated
_Visit = Callable[[str, Any, Tensor], None]


def percent_by_layer(model: nn.Module) -> dict[str, Tensor]:
    """`percent` of every ASH and Hard ASH layer by qualified name, in the order of the network's depth."""
    return {name: layer.percent for name, layer in _layers(model).items()}


def inverted_layers(model: nn.Module) -> list[str]:
    """Names of the layers that training has given a negative alpha: they let the smallest values through."""
    return [name for name, layer in _layers(model).items() if bool((layer.alpha < 0).any())]


@torch.no_grad()
def calibrate_percent(
    model: nn.Module, loader: Iterable[Any], percent: float | Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Set z_k of every ASH and Hard ASH layer so that it lets through a wanted share of what it really sees.

    z_k is the z-score of a percentile only where the inputs are normal. Here it becomes the percentile of the
    standardised inputs themselves, of each channel where z_k is per channel. Layers are set one after the other as the
    first batch goes through, so that each sees what the calibrated ones before it let through; later batches refine.

    Args:
        model: run as it is, in its present mode (in training mode batch norms update).
        loader: batches: a tensor, a sequence that starts with it, or a mapping of keyword arguments.
        percent: the wanted share in percent, one for all or by layer name (the others stay); None keeps each layer's
            own `percent` as the wanted share.

    Returns:
        The new `z_k` of each layer set.

    Raises:
        ValueError: percent outside (0, 100) or of an unknown layer, no such layers, an empty loader.
    """
    wanted = _wanted(_layers(model), percent)
    seen: dict[str, Tensor] = {}

    def visit(name: str, layer: PercentileGate, x: Tensor) -> None:
        if name not in wanted:
            return
        counts = _histogram(layer, x)
        seen[name] = seen[name] + counts if name in seen else counts
        layer.z_k.copy_(_upper_quantile(seen[name], wanted[name].to(counts) / 100))

    _run(model, loader, PercentileGate, visit)
    return {name: layer.z_k.detach().clone() for name, layer in _layers(model).items() if name in seen}


@torch.no_grad()
def fold(model: nn.Module, loader: Iterable[Any]) -> nn.Module:
    """A copy of `model` whose ASH layers have their statistics frozen at what they are, on average, over `loader`.

    Each layer becomes a `FoldedASH`, x S(a x + b) with constant a and b, which costs what Swish does and needs no
    statistics at inference. A layer object used at several sites stays one, with the average over its sites.

    Args:
        model: a network with ASH layers, or one ASH layer. Run in its present mode, otherwise unchanged.
        loader: batches, see `calibrate_percent`.

    Raises:
        ValueError: no ASH layers, an empty loader, or a layer that was never reached.
    """
    sums: dict[str, Tensor] = {}

    def visit(name: str, layer: ASH, x: Tensor) -> None:
        m = layer.statistics(x)
        count = m.sigma.new_tensor(m.sigma.numel())
        new = torch.stack([(m.mean + m.rest).sum(), m.sigma.sum(), count]).double()
        sums[name] = sums[name] + new if name in sums else new

    _run(model, loader, ASH, visit)
    folded = copy.deepcopy(model)
    frozen: dict[nn.Module, FoldedASH] = {}
    for name, layer in _layers(folded, ASH).items():
        if name not in sums:
            raise ValueError(f"layer {name!r} was never reached by the loader's batches")
        mean, sigma, samples = sums[name].tolist()
        frozen[layer] = layer.fold(mean / samples, sigma / samples)
    for name, module in list(folded.named_modules(remove_duplicate=False)):
        if module in frozen and name:
            parent, _, child = name.rpartition(".")
            setattr(folded.get_submodule(parent), child, frozen[module])
    return frozen.get(folded, folded)


def _layers(model: nn.Module, kind: type[Any] = PercentileGate) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _wanted(layers: Mapping[str, PercentileGate], percent: float | Mapping[str, float] | None) -> dict[str, Tensor]:
    """The wanted share of each layer, in percent."""
    if percent is None:
        return {name: layer.percent for name, layer in layers.items()}
    named = dict(percent) if isinstance(percent, Mapping) else dict.fromkeys(layers, percent)
    unknown = [name for name in named if name not in layers]
    if unknown:
        raise ValueError(
            f"percent names layers that are not ASH layers of the model: {unknown}, there are {list(layers)}"
        )
    for name, value in named.items():
        if not 0 < value < 100:
            raise ValueError(f"percent must be inside (0, 100), got {value} for {name!r}")
    return {name: torch.tensor(float(value)) for name, value in named.items()}


def _run(model: nn.Module, loader: Iterable[Any], kind: type[Any], visit: _Visit) -> None:
    """Run the model over the loader; `visit` sees each layer's input before the layer does."""
    layers = _layers(model, kind)
    if not layers:
        raise ValueError(f"model must have {kind.__name__} layers, {type(model).__name__} has none")
    batches = 0
    with watching(layers, visit):
        for batch in loader:
            batches += 1
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch if isinstance(batch, Tensor) else batch[0])
    if not batches:
        raise ValueError("loader must give at least one batch, got none")


def _histogram(layer: PercentileGate, x: Tensor) -> Tensor:
    """Counts of the standardised values of each channel that has a z_k of its own: (num_parameters, bins)."""
    m = layer.statistics(x)
    scores = m.centred / m.sigma
    channels = layer.num_parameters
    rows = scores.movedim(layer.channel_dim, 0).reshape(channels, -1) if channels > 1 else scores.reshape(1, -1)
    bins = ((rows + _RANGE) * (_BINS / (2 * _RANGE))).long().clamp_(0, _BINS - 1)
    bins += torch.arange(channels, device=x.device)[:, None] * _BINS
    return torch.bincount(bins.reshape(-1), minlength=channels * _BINS).view(channels, _BINS).double()


def _upper_quantile(counts: Tensor, share: Tensor) -> Tensor:
    """The score above which `share` of each row's counts lie, interpolated within its bin."""
    below = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
    target = ((1 - share) * below[:, -1]).clamp_(max=below[:, -1]).unsqueeze(1)
    place = torch.searchsorted(below, target).clamp_(1, _BINS)
    before, inside = below.gather(1, place - 1), counts.gather(1, place - 1)
    fraction = (target - before) / inside.clamp(min=1)
    return ((place - 1 + fraction) * (2 * _RANGE / _BINS) - _RANGE).squeeze(1)
