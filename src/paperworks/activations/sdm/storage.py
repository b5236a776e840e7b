"""An estimator as two files, `sdm.safetensors` (every number) and `sdm.json` (names and settings); nothing pickled."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .adaptor import ExemplarAdaptor
from .robust import CalibrationOutputs
from .state import SDMState
from .support import SupportIndex

FORMAT = 1
_PARTS = ("label", "prediction", "q", "d_nearest")


def _arrays(state: SDMState, outputs: list[CalibrationOutputs]) -> dict[str, NDArray[Any]]:
    arrays = {
        "train.label": state.y_train,
        "train.prediction": state.train_pred,
        "train.q": state.train_q,
        "train.d_nearest": state.train_d_nearest,
        "cal.label": state.y_cal,
        "cal.prediction": state.cal_pred,
        "cal.q": state.cal_q,
        "cal.d_nearest": state.cal_d_nearest,
        "cal.p": state.cal_p,
        "rescaler.weight": state.rescaler_weight,
        # As arrays: JSON has no infinity.
        "q_min_robust": np.array(state.q_min_robust),
        "alpha": np.array(state.alpha),
    }
    for j, round_ in enumerate(outputs):
        arrays |= {f"round.{j}.{f.name}": getattr(round_, f.name) for f in fields(CalibrationOutputs)}
    return arrays


def write(
    folder: str | Path, state: SDMState, outputs: list[CalibrationOutputs], extra: dict[str, NDArray[Any]], meta: Any
) -> None:
    """Write the state, the rounds' outputs, further arrays and JSON-able `meta` into `folder` (made if missing)."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {name: torch.tensor(a) for name, a in (_arrays(state, outputs) | extra).items()}
    tensors |= {f"adaptor.{name}": t.detach().cpu().contiguous() for name, t in state.adaptor.state_dict().items()}
    tensors["exemplars"] = state.index.exemplars.cpu()
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    offsets = [{str(b): m for b, m in bins.items()} for bins in state.offsets]
    save_file(tensors, path / "sdm.safetensors")
    text = json.dumps({"format": FORMAT, "rounds": len(outputs), "offsets": offsets, **meta}, indent=1)
    (path / "sdm.json").write_text(text + "\n", encoding="utf-8")


def read(
    folder: str | Path, device: torch.device
) -> tuple[SDMState, list[CalibrationOutputs], dict[str, NDArray[Any]], dict[str, Any]]:
    """What `write` wrote: state, outputs, all arrays by name, and the JSON part.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: written by another format.
    """
    from safetensors.torch import load_file

    path = Path(folder)
    meta = json.loads((path / "sdm.json").read_text(encoding="utf-8"))
    if meta.get("format") != FORMAT:
        raise ValueError(f"folder {path} holds format {meta.get('format')!r}, wanted {FORMAT}")
    tensors = load_file(path / "sdm.safetensors")
    weights = {k.removeprefix("adaptor."): t for k, t in tensors.items() if k.startswith("adaptor.")}
    filters, features = weights["conv.weight"].shape
    adaptor = ExemplarAdaptor(features, len(weights["fc.weight"]), filters, device=device)
    adaptor.load_state_dict(weights)
    index = SupportIndex(tensors["exemplars"].to(device), tensors["train.label"], tensors["train.prediction"])
    arrays = {k: t.numpy() for k, t in tensors.items() if not k.startswith("adaptor.") and k != "exemplars"}
    train, cal = ({name: arrays[f"{split}.{name}"] for name in _PARTS} for split in ("train", "cal"))
    state = SDMState(adaptor, index, train, cal, arrays["cal.p"])
    offsets = [{int(b): m for b, m in bins.items()} for bins in meta["offsets"]]
    state.set_rescaler(arrays["rescaler.weight"], float(arrays["alpha"]), float(arrays["q_min_robust"]), offsets)
    outputs = [
        CalibrationOutputs(**{f.name: arrays[f"round.{j}.{f.name}"] for f in fields(CalibrationOutputs)})
        for j in range(meta["rounds"])
    ]
    return state, outputs, arrays, meta
