"""MobileNetV2 and V3 with the names that torchvision's checkpoints have, at any width, and a loader for such files.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381, Table 2) and "Searching for MobileNetV3"
(arXiv 1905.02244, Tables 1 and 2). A checkpoint of timm, or any other that lists the layers in the order of the forward
pass, is taken too: see `load_weights`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "load_weights", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"]

# kernel, wide channels, channels out, squeeze-excite, hard-swish, stride
Row = tuple[int, int, int, bool, bool, int]

_SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
_LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
# expansion, channels out, repeats, stride of the first
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _divisible(value: float) -> int:
    """The nearest multiple of 8, at least 8, that is not more than a tenth below `value`."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


class _Layer(nn.Sequential):
    """Convolution with padding to the same size, norm and an activation (None: no third entry)."""

    def __init__(
        self, i: int, o: int, kernel: int, stride: int, groups: int, act: type[nn.Module] | None, eps: float
    ) -> None:
        conv = nn.Conv2d(i, o, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(o, eps=eps)
        super().__init__(conv, norm, *([] if act is None else [act()]))


class _SqueezeExcite(nn.Module):
    """x times hardsigmoid(fc2(relu(fc1(mean of x over the map))))."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gate * x


class _BlockV2(nn.Module):
    def __init__(self, i: int, o: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = i * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_Layer(i, wide, 1, 1, 1, nn.ReLU6, 1e-5)]
        layers += [_Layer(wide, wide, 3, stride, wide, nn.ReLU6, 1e-5)]
        self.conv = nn.Sequential(*layers, nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o))
        self.adds = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class _BlockV3(nn.Module):
    def __init__(self, i: int, o: int, wide: int, kernel: int, stride: int, gate: bool, hard: bool) -> None:
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        layers: list[nn.Module] = [] if wide == i else [_Layer(i, wide, 1, 1, 1, act, 1e-3)]
        layers += [_Layer(wide, wide, kernel, stride, wide, act, 1e-3)]
        layers += [_SqueezeExcite(wide, _divisible(wide // 4))] if gate else []
        self.block = nn.Sequential(*layers, _Layer(wide, o, 1, 1, 1, None, 1e-3))
        self.adds = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.adds else y


class MobileNet(nn.Module):
    """Features (N, C, H, W) -> pooled -> classifier (N, num_classes). `momentum` is that of the running statistics."""

    def __init__(self, features: list[nn.Module], classifier: list[nn.Module], momentum: float) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(*classifier)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    stem_stride: int = 2,
    dropout: float = 0.2,
    momentum: float = 0.1,
) -> MobileNet:
    """MobileNetV2; 3,504,872 parameters with the defaults."""
    i = _divisible(32 * width)
    features: list[nn.Module] = [_Layer(in_channels, i, 3, stem_stride, 1, nn.ReLU6, 1e-5)]
    for expansion, channels, repeats, stride in _V2:
        o = _divisible(channels * width)
        for n in range(repeats):
            features.append(_BlockV2(i, o, expansion, stride if n == 0 else 1))
            i = o
    last = _divisible(1280 * max(1.0, width))
    features.append(_Layer(i, last, 1, 1, 1, nn.ReLU6, 1e-5))
    return MobileNet(features, [nn.Dropout(dropout), nn.Linear(last, num_classes)], momentum)


def _mobilenet_v3(
    rows: tuple[Row, ...],
    last: int,
    num_classes: int,
    in_channels: int,
    width: float,
    stem_stride: int,
    dropout: float,
    momentum: float,
) -> MobileNet:
    i = _divisible(16 * width)
    features: list[nn.Module] = [_Layer(in_channels, i, 3, stem_stride, 1, nn.Hardswish, 1e-3)]
    for kernel, wide, channels, gate, hard, stride in rows:
        o = _divisible(channels * width)
        features.append(_BlockV3(i, o, _divisible(wide * width), kernel, stride, gate, hard))
        i = o
    features.append(_Layer(i, 6 * i, 1, 1, 1, nn.Hardswish, 1e-3))
    hidden = _divisible(last * width)
    classifier = [nn.Linear(6 * i, hidden), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)]
    return MobileNet(features, classifier, momentum)


def mobilenet_v3_small(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    stem_stride: int = 2,
    dropout: float = 0.2,
    momentum: float = 0.01,
) -> MobileNet:
    """MobileNetV3-Small; 2,542,856 parameters with the defaults."""
    return _mobilenet_v3(_SMALL, 1024, num_classes, in_channels, width, stem_stride, dropout, momentum)


def mobilenet_v3_large(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    stem_stride: int = 2,
    dropout: float = 0.2,
    momentum: float = 0.01,
) -> MobileNet:
    """MobileNetV3-Large; 5,483,032 parameters with the defaults."""
    return _mobilenet_v3(_LARGE, 1280, num_classes, in_channels, width, stem_stride, dropout, momentum)


NETWORKS: dict[str, Callable[..., MobileNet]] = {
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v3-small": mobilenet_v3_small,
    "mobilenet-v3-large": mobilenet_v3_large,
}


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Load a local checkpoint into `model`, all but a last layer for another number of classes.

    Where the names fit (torchvision's), they decide. Else layers are taken in the order of the file, as those of timm,
    transformers and most others stand there in the order of the forward pass: each has to have the shapes of the layer
    in its place (a 1x1 convolution and a linear layer count as the same). Norms get the epsilon 1e-5 then, timm's.

    Args:
        path: `.safetensors`, or a `.pth`/`.pt` of tensors, alone or under "state_dict" or "model".

    Returns:
        Names of the parameters that keep their new values: the last layer's, or none.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: no readable state dict there, or one that does not fit.
    """
    state = _read(Path(path))
    own = model.state_dict()
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    if set(own) - set(state) - {key for key in own if key.endswith("num_batches_tracked")}:
        state = _by_order(own, state, str(path))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5
    last = next(reversed([name for name, _ in model.named_parameters()])).rpartition(".")[0]
    new = [key for key in own if key.startswith(f"{last}.") and state[key].shape != own[key].shape]
    wrong = [key for key in own if key in state and key not in new and state[key].shape != own[key].shape]
    if wrong:
        got, want = tuple(state[wrong[0]].shape), tuple(own[wrong[0]].shape)
        raise ValueError(f"weights {str(path)!r}: {wrong[0]} has shape {got}, want {want}")
    model.load_state_dict({key: value for key, value in state.items() if key in own and key not in new}, strict=False)
    return new


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {str(path)!r}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"weights {str(path)!r}: no state dict of tensors ({type(error).__name__})") from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights {str(path)!r}: got {type(state).__name__}, want a state dict of tensors")
    return dict(state)


def _by_order(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """`state` under the names of `own`, layer by layer in the order of each."""
    mine, theirs = _layers(own), _layers(state)
    if len(mine) != len(theirs):
        raise ValueError(f"weights {path!r}: {len(theirs)} layers, want the {len(mine)} of the model")
    found = {}
    for n, (name, layer) in enumerate(mine.items()):
        other_name, other = list(theirs.items())[n]
        for key, value in layer.items():
            given = other.get(key)
            last = n == len(mine) - 1
            if given is None or (given.numel() != value.numel() and not last):
                got = "no such tensor" if given is None else f"shape {tuple(given.shape)}"
                raise ValueError(
                    f"weights {path!r}: {other_name}.{key}, taken for {name}.{key}: {got}, want {tuple(value.shape)}"
                )
            found[f"{name}.{key}"] = given if given.numel() != value.numel() else given.reshape(value.shape)
    return found


def _layers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        if name != "num_batches_tracked":
            found.setdefault(layer, {})[name] = value
    return found
