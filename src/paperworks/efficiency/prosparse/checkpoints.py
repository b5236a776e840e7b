"""Checkpoints of sparse models, and folders of text to train on.

A model at threshold 0 is a plain ReLU model and can be loaded without this library. A threshold above 0 cannot be
told to a plain model: FATReLU jumps at t, which no bias makes of ReLU. Such a folder is written in the form of the
published checkpoints, `hidden_act: "fatrelu"` with `hidden_act_param`, which `load_checkpoint` reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.prosparse.fatrelu import relufy, set_threshold, thresholds

SPARSE_LLAMA = "sparsellama"
_BUFFER = ".act_fn.threshold"
_INSTALL = "pip install 'paperworks[efficiency]'"


def export_checkpoint(model: nn.Module, folder: str | os.PathLike[str], *, plain: bool = True) -> Path:
    """Write configuration and weights (safetensors) of a relufied transformers model to `folder`.

    Args:
        model: a transformers model that went through `relufy`, with dense MLPs.
        folder: made where it is not there.
        plain: the folder has to load in transformers alone, with `hidden_act: "relu"`. False also writes a model with
            thresholds, for `load_checkpoint`.

    Raises ValueError for a model that is not of transformers or not relufied, for `plain` with a threshold above 0, and
    for thresholds by channel, which the configuration cannot hold.
    """
    save: Any = getattr(model, "save_pretrained", None)
    if save is None:
        raise ValueError(f"model: got {type(model).__name__}, wanted a transformers model")
    values = thresholds(model)
    if plain and any(bool((value != 0).any()) for value in values):
        raise ValueError(
            "plain: got a model with a threshold above 0, which plain transformers cannot express; wanted "
            "set_threshold(model, 0.0) before, or plain=False and load_checkpoint"
        )
    if any(value.ndim for value in values) and not plain:
        raise ValueError("model: got thresholds by channel, wanted one number a layer")
    state = {name: value for name, value in model.state_dict().items() if not name.endswith(_BUFFER)}
    save(folder, state_dict=state)
    if plain:  # thresholds by channel, all of them 0, are described as None
        _rewrite(Path(folder) / "config.json")
    return Path(folder)


def _rewrite(file: Path) -> None:
    config = json.loads(file.read_text())
    config.pop("hidden_act_param", None)
    for name in ("hidden_act", "hidden_activation"):
        if name in config:
            config[name] = "relu"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_checkpoint(folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model of a local folder, relufied at the threshold that its configuration names.

    Reads the published ProSparse checkpoints (`model_type: "sparsellama"` is a Llama with another activation), what
    `export_checkpoint` writes, and plain ReLU models. Weights are safetensors or tensors-only torch files; no code of
    the folder is run.

    Raises:
        ValueError: no config.json, another activation than "relu" or "fatrelu", a threshold that does not fit, or
            weights that lack part of the model.
        ImportError: transformers is missing.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
    except ImportError as error:
        raise ImportError(f"load_checkpoint needs transformers: {_INSTALL}") from error
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"folder: got {os.fspath(folder)!r} without config.json, wanted a saved transformers model")
    values: dict[str, Any] = json.loads(file.read_text())
    name = "hidden_activation" if "hidden_act" not in values and "hidden_activation" in values else "hidden_act"
    activation = values.get(name)
    threshold: Any = values.get("hidden_act_param")
    if activation not in ("relu", "fatrelu"):
        raise ValueError(f"folder: got {name} {activation!r} in config.json, wanted 'relu' or 'fatrelu'")
    if activation == "fatrelu" and threshold is None:
        raise ValueError("folder: got hidden_act 'fatrelu' without hidden_act_param, wanted its threshold")
    sparse_llama = values.get("model_type") == SPARSE_LLAMA
    left_out = ("model_type", "auto_map", "architectures", "hidden_act_param")
    given = {key: value for key, value in values.items() if key not in left_out} | {name: "relu"}
    kind = "llama" if sparse_llama else str(values.get("model_type"))
    config: Any = LlamaConfig(**given) if sparse_llama else AutoConfig.for_model(kind, **given)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, trust_remote_code=False, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"folder: the weights lack {missing[0]!r} and {len(missing) - 1} more of a {kind} model")
    relufy(model)
    if activation == "fatrelu":
        set_threshold(model, dict(enumerate(threshold)) if isinstance(threshold, list) else float(threshold))
    made: nn.Module = model
    return made


def read_documents(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The texts of a folder, its files in the order of their paths: `.txt` whole, `.jsonl` a text a line, field `text`.

    Raises ValueError for a folder without such files, and, with file and line, for a line that is no JSON object with a
    string `text`.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.suffix in (".txt", ".jsonl") and path.is_file())
    if not files:
        raise ValueError(f"folder: found no .txt or .jsonl file in {os.fspath(folder)!r}")
    for file in files:
        if file.suffix == ".txt":
            yield file.read_text(encoding="utf-8")
            continue
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text_of(line, f"{file.name}, line {number}")


def _text_of(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: {error.msg}, wanted a JSON object a line") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{place}: wanted a JSON object with a string 'text'")
    return text


def packed_batches(
    documents: Iterable[str],
    encode: Callable[[str], Sequence[int]],
    end: int,
    *,
    context: int,
    batch_size: int,
) -> Iterator[dict[str, Tensor]]:
    """Documents as batches for `train_prosparse`, without padding: {"input_ids": int64 (batch_size, context)}.

    Each document is followed by the token `end`; what does not fill a batch at the end is left out.

    Args:
        encode: text to tokens without special ones: `tokenizer(text, add_special_tokens=False)["input_ids"]`.
        end: the token that ends a document, `tokenizer.eos_token_id`.
        context: tokens of a window; the paper takes 4096.
    """
    for name, value in (("context", context), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted 1 or more")
    waiting: list[int] = []
    size = context * batch_size
    for document in documents:
        waiting.extend([*encode(document), end])
        while len(waiting) >= size:
            yield {"input_ids": torch.tensor(waiting[:size], dtype=torch.int64).view(batch_size, context)}
            del waiting[:size]
