"""Decoding with a published sparse checkpoint: sparse MLPs, with or without predictors, beside the dense ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.prosparse.calibration import sparsity_report
from paperworks.efficiency.prosparse.checkpoints import load_checkpoint, packed_batches, read_documents
from paperworks.efficiency.prosparse.fatrelu import set_threshold
from paperworks.efficiency.prosparse.predictor import (
    ActivationPredictor,
    active_channels,
    fit_predictors,
    predictor_metrics,
)
from paperworks.efficiency.prosparse.sparse_mlp import SparseGatedMLP
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.measure.latency import paired_latency
from paperworks.surgery.gated_mlps import find_gated_mlps


@dataclass(frozen=True)
class Decoding:
    """How a checkpoint decodes.

    Attributes:
        threshold: in place of the checkpoint's.
        predicted: predictors choose the channels, trained for so many `epochs`.
    """

    threshold: float | None = None
    predicted: bool = False
    epochs: int = 10


def decode(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.sparsity.sparse_decoding`."""
    how: Decoding = arm.build()
    settings = trial.settings
    model = load_checkpoint(settings["checkpoint"], dtype=getattr(torch, settings["dtype"])).to(trial.device).eval()
    if how.threshold is not None:
        set_threshold(model, how.threshold)
    batches = _documents(trial)
    held = list(itertools.islice(batches, settings["windows"]))
    if not held:
        raise ValueError(f"documents: got fewer than {settings['context']} tokens in {settings['documents']!r}")
    sparsity = 100 * float(sparsity_report(model, held).mean())
    predictors: list[ActivationPredictor] | None = None
    recall, left_out = 100.0, 0.0
    if how.predicted:
        training = itertools.islice(batches, settings["predictor_windows"])
        seed = trial.derived_seed("predictors") % 2**31
        predictors = fit_predictors(model, training, epochs=how.epochs, seed=seed)
        recall, left_out = _predicted(model, held, predictors)
    speedup = _speedup(trial, model, predictors, held[0]["input_ids"][:, :1].to(trial.device))
    return {"speedup": speedup, "sparsity": sparsity, "recall": recall, "predicted_sparsity": left_out}


def _documents(trial: Trial) -> Iterator[dict[str, Tensor]]:
    """Windows of the documents in the order of the seed, one a batch, by the checkpoint's own tokenizer."""
    from transformers import AutoTokenizer

    settings = trial.settings
    tokenizer = AutoTokenizer.from_pretrained(settings["checkpoint"], trust_remote_code=False, local_files_only=True)
    texts = list(read_documents(settings["documents"]))
    order = torch.randperm(len(texts), generator=trial.generator("documents")).tolist()

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"checkpoint: the tokenizer of {settings['checkpoint']!r} has no token that ends a document")
    return packed_batches((texts[i] for i in order), encode, end, context=settings["context"], batch_size=1)


def _predicted(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], predictors: Sequence[ActivationPredictor]
) -> tuple[float, float]:
    """Recall and predicted sparsity in percent, means over the layers, on text that no predictor was trained on."""
    found = []
    for layer, predictor in enumerate(predictors):
        inputs, active = active_channels(model, batches, layer)
        with torch.no_grad():
            parts = [predictor(part.to(predictor.down.weight)).cpu() for part in inputs.split(1024)]
        found.append(predictor_metrics(active, torch.cat(parts)))
    recall, left_out = torch.tensor(found, dtype=torch.float64).nanmean(0).tolist()
    return 100 * recall, 100 * left_out


def _speedup(trial: Trial, model: Any, predictors: Sequence[ActivationPredictor] | None, prompt: Tensor) -> float:
    mlps = find_gated_mlps(model)
    dense = [mlp.module for mlp in mlps]
    dtype = next(model.parameters()).dtype
    chosen = [None] * len(mlps) if predictors is None else [predictor.to(dtype) for predictor in predictors]
    sparse = [SparseGatedMLP.from_dense(part, predictor=p) for part, p in zip(dense, chosen, strict=True)]
    n: int = trial.settings["new_tokens"]

    def call(parts: Sequence[nn.Module]) -> Callable[[], object]:
        def run() -> object:
            for mlp, part in zip(mlps, parts, strict=True):
                model.set_submodule(mlp.name, part)
            with torch.inference_mode():
                return model.generate(
                    prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False, use_cache=True, pad_token_id=0
                )

        return run

    found = paired_latency(
        {"sparse": call(sparse), "dense": call(dense)},
        rounds=trial.settings["rounds"],
        seed=trial.derived_seed("order") % 2**31,
    )
    return found.ratio("dense", "sparse").median
