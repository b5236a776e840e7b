"""The networks of the transfer protocol: MobileNets by name, or what a user names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from paperworks.papers.protocols.mobilenets import NETWORKS
from paperworks.surgery.models import load_model, model_signature

__all__ = ["build_network", "last_linear", "network_signature", "weights_signature"]


def build_network(settings: Mapping[str, Any], num_classes: int, in_channels: int) -> nn.Module:
    """The network that the settings name: (N, in_channels, size, size) -> (N, num_classes).

    Raises ValueError for a name that is neither a network here nor something that `surgery.models.load_model` takes.
    """
    spec = settings["model"]
    if spec in NETWORKS:
        weights = bool(settings["weights"])
        width, stride = (1.0, 2) if weights else (settings["width"], settings["stem_stride"])
        # Running statistics have to settle within the few steps of a transfer, so torch's momentum and not V3's 0.01.
        return NETWORKS[spec](num_classes, in_channels, width=width, stem_stride=stride, momentum=0.1)
    try:
        return load_model(spec, num_classes=num_classes, in_channels=in_channels, image_size=settings["size"])
    except ValueError as error:
        raise ValueError(f"{error} (or one of the networks {', '.join(NETWORKS)})") from error


def last_linear(model: nn.Module) -> str:
    """Name of the last linear layer. Raises ValueError where there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"model: no linear layer in {type(model).__name__}, want one as the last layer")
    return names[-1]


def network_signature(spec: str) -> str:
    """Digest of what `spec` names outside this package: a user's factory or checkpoint folder."""
    return "" if spec in NETWORKS else model_signature(spec)


def weights_signature(path: str) -> str:
    """Digest of the bytes of a checkpoint; empty for none."""
    if not path:
        return ""
    with Path(path).expanduser().open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
