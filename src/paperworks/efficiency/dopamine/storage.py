"""A gated model's thresholds and gains in a folder: `taugate_config.json` and `taugate_model.safetensors`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from paperworks.surgery.sites import ActivationSite, activation_sites

if TYPE_CHECKING:
    from paperworks.efficiency.dopamine.adapter import TauGateModel

CONFIG, WEIGHTS = "taugate_config.json", "taugate_model.safetensors"
_KEYS = {"format", "config", "modes", "active", "sharpness", "hard", "sites"}


def write(adapted: TauGateModel, folder: Path) -> None:
    """See `TauGateModel.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(adapted.config)
    if not isinstance(config["targets"], str | None):
        config["targets"] = list(config["targets"])
    gates = adapted.gates
    saved = {
        "format": "taugate 1",
        "config": config,
        "modes": adapted.modes,
        "active": adapted.active,
        "sharpness": adapted.sharpness,
        "hard": next(iter(gates.values())).hard,
        "sites": {site.name: {"width": site.width, "dim": site.dim} for site in adapted.sites},
    }
    (folder / CONFIG).write_text(json.dumps(saved, indent=2) + "\n")
    tensors = {name: value.cpu().contiguous() for name, value in adapted.state_dict_adapter().items()}
    save_file(tensors, folder / WEIGHTS)


def read_config(folder: Path) -> dict[str, Any]:
    """The saved description. Raises ValueError where the file is missing or says something else."""
    path = folder / CONFIG
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: wanted the file that TauGateModel.save writes ({error})") from error
    if not isinstance(saved, dict) or saved.get("format") != "taugate 1" or not saved.keys() >= _KEYS:
        raise ValueError(f"{path}: wanted format 'taugate 1' with {', '.join(sorted(_KEYS))}")
    return saved


def checked_sites(model: nn.Module, saved: dict[str, Any]) -> list[ActivationSite]:
    """The saved sites in a model. Raises ValueError for a site that the model does not have."""
    names = list(saved["sites"])
    found = {site.name: site for site in activation_sites(model, targets=names)}
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"model: has no activation {missing[0]!r}, where the saved adapter has a gate")
    known = ("width", "dim")
    return [dataclasses.replace(found[name], **{k: saved["sites"][name][k] for k in known}) for name in names]


def read(adapted: TauGateModel, folder: Path) -> None:
    """See `TauGateModel.load`."""
    saved = read_config(folder)
    sites = {site.name: {"width": site.width, "dim": site.dim} for site in adapted.sites}
    if sites != saved["sites"]:
        wrong = sorted(
            name for name in sites.keys() | saved["sites"].keys() if sites.get(name) != saved["sites"].get(name)
        )
        raise ValueError(
            f"folder: {folder} has {saved['sites'].get(wrong[0])} at {wrong[0]!r}, this model {sites.get(wrong[0])}"
        )
    path = folder / WEIGHTS
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: wanted the tensors that TauGateModel.save writes ({error})") from error
    modes = list(saved["modes"])
    for name, site in sites.items():
        for key in ("tau", "gain"):
            got = tensors[f"{name}.{key}"].shape if f"{name}.{key}" in tensors else None
            if got != (len(modes), site["width"]):
                raise ValueError(f"{path}: got {name}.{key} of shape {got}, wanted {(len(modes), site['width'])}")
    for name, gate in adapted.gates.items():
        gate.fill(modes, tensors[f"{name}.tau"], tensors[f"{name}.gain"])
        gate.hard, gate.sharpness = bool(saved["hard"]), float(saved["sharpness"])
    adapted.sharpness = float(saved["sharpness"])
    adapted.set_mode(modes[0] if saved["active"] is None else saved["active"])
