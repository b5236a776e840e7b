"""SDM networks: fine-tune a language model's output layer so that more of its answers pass the model's own check."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language import LANGUAGE_MODEL, above_zero, at_least_one

ANSWERS = {
    0: ('{"sentiment": "negative"}', '{"sentiment": "positive"}'),
    1: ('{"correctness": false}', '{"correctness": true}'),
}
"""What a right completion says in the authors' files, by `taskCategory` and `original_label`."""


def documents_signature(path: str) -> str:
    """Digest of a file of documents, empty for no file. Raises ValueError where there is no such file."""
    if not path:
        return ""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"documents: got {path!r}, wanted a file of JSON lines with prompt, completion, label, answer")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def _accuracy(value: float) -> None:
    if not 0.5 < value < 1:
        raise ValueError(f"got {value}, wanted a number between 0.5 and 1")


_FORM = "JSON lines: prompt, completion, label (1 right, 0 wrong), answer; or the authors' files"


@protocol(
    "verified generation",
    metrics={
        "task_accuracy": "share of the test prompts whose greedy completion is the right answer",
        "admitted_share": "share of the test prompts whose completion the model's own check admits as right",
        "admitted_accuracy": "share of right answers among those; 1 where there are none",
    },
    settings=(
        LANGUAGE_MODEL,
        Setting("documents", str, "", f"for training and calibration; {_FORM}",
                signature=f"{__name__}:documents_signature"),
        Setting("test_documents", str, "", f"for the test; {_FORM}", signature=f"{__name__}:documents_signature"),
        Setting("max_new_tokens", int, Tiers(smoke=8, desk=16), "longest completion", at_least_one),
        Setting("alpha", float, 0.95, "wanted accuracy of the check", _accuracy),
        Setting("rounds", int, Tiers(smoke=1, desk=10), "splits and trainings of the check", at_least_one),
        Setting("epochs", int, Tiers(smoke=2, desk=50), "epochs of the check", at_least_one),
        Setting("lr", float, Tiers(smoke=1e-3, gpu=1e-5), "learning rate of the check", above_zero),
        Setting("filters", int, Tiers(smoke=16, desk=1000), "width of the check's adaptor", at_least_one),
        Setting("network_epochs", int, Tiers(smoke=1, desk=5), "epochs of the output layer", at_least_one),
        Setting("network_lr", float, 1e-5, "learning rate of the output layer", above_zero),
        Setting("batch_size", int, 50, "tokens, or documents of the check, a step", at_least_one),
        Setting("beta", float, 0.1, "largest weight of the regulariser"),
        Setting("documents_at_once", int, Tiers(smoke=8, gpu=32), "documents generated together", at_least_one),
    ),
    time_limit=24 * 3600.0,
    memory_limit_gib=96.0,
)  # fmt: skip
def verified_generation(trial: Trial, arm: Arm) -> dict[str, float]:
    """Fit the check on the documents as given, train the output layer (Eq. 32), answer the test prompts.

    The seed sets the splits of the check and the order of the tokens; arms differ in the epochs of the output layer.
    """
    from paperworks.activations.sdm import document_features, greedy_completions

    settings, size = trial.settings, trial.settings["documents_at_once"]
    model, text = load_speaker(settings["language_model"], trial)

    def is_right(document: Any, completion: Sequence[int]) -> bool:
        return same_answer(text.decode(completion), document.task_label)

    epochs = arm.build()
    head, verifier = train(trial, model, text, settings["network_epochs"] if epochs is None else epochs, is_right)
    test = read_documents(settings["test_documents"], text)
    completions = greedy_completions(model, head, [d.prompt for d in test], settings["max_new_tokens"], size)
    features = document_features(model, [[*d.prompt, *c] for d, c in zip(test, completions, strict=True)], size)
    result = verifier.select(features)
    admitted = result.admitted & (result.prediction == 1)
    right = [is_right(d, c) for d, c in zip(test, completions, strict=True)]
    kept = [r for r, a in zip(right, admitted, strict=True) if a]
    return {
        "task_accuracy": sum(right) / len(right),
        "admitted_share": float(admitted.mean()),
        "admitted_accuracy": sum(kept) / len(kept) if kept else 1.0,
    }


def train(
    trial: Trial, model: Any, text: Text, epochs: int, is_right: Callable[[Any, list[int]], bool]
) -> tuple[Any, Any]:
    """The trained head and the check, which is fitted first and gives its own halves of the documents to the head."""
    from paperworks.activations.sdm import SDMClassifier, fit_verifier, train_sdm_network

    settings, size = trial.settings, trial.settings["documents_at_once"]
    documents = read_documents(settings["documents"], text)
    check = SDMClassifier(
        settings["alpha"],
        num_filters=settings["filters"],
        rounds=settings["rounds"],
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        lr=settings["lr"],
        random_state=trial.derived_seed("check") % 2**32,
        device=trial.device,
    )
    verifier = fit_verifier(model, documents, check, size)
    trial.progress(0.2, "trained the check")
    run = train_sdm_network(
        model,
        verifier,
        [documents[i] for i in verifier.train_index_],
        [documents[i] for i in verifier.cal_index_],
        max_new_tokens=settings["max_new_tokens"],
        epochs=epochs,
        batch_size=settings["batch_size"],
        lr=settings["network_lr"],
        beta=settings["beta"],
        seed=trial.derived_seed("order") % 2**31,
        task_check=is_right,
        generation_batch=size,
    )
    trial.curve("admitted calibration answers", run.accepted)
    trial.progress(0.8, "trained the output layer")
    return run.head, verifier


def network(epochs: int | None = None) -> int | None:
    """An arm: the epochs of the output layer, None for those of the settings, 0 for the model as it is."""
    return epochs


@dataclass(frozen=True)
class Text:
    """A tokenizer: text to token ids and back, and the id that ends a completion, where there is one."""

    tokens: Any
    end: int | None

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self.tokens.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` up to the end token."""
        kept = list(ids)
        if self.end in kept:
            kept = kept[: kept.index(self.end)]
        if hasattr(self.tokens, "tokenizer"):
            return str(self.tokens.tokenizer.decode(kept, skip_special_tokens=True))
        return bytes(i for i in kept if i < 256).decode(errors="replace")


def load_speaker(spec: str, trial: Trial) -> tuple[Any, Text]:
    """The language model of a spec on the trial's device, frozen, and its tokens.

    `gpt2` and `llama` are models of two layers with random weights over bytes.
    """
    from paperworks.papers.protocols import language_models

    if language_models.is_made_here(spec):
        tokens: Any = language_models.ByteTokens()
        size = language_models.Size(context=512, layers=2, dim=32, heads=2)
        with trial.global_generators("weights"):
            model: Any = language_models.make_language_model(spec, tokens.size, size)
        model.generation_config.eos_token_id = tokens.end
    else:
        model, tokens = language_models.load_checkpoint(spec)
    model.config.use_cache = True
    model.to(trial.device).eval().requires_grad_(False)
    return model, Text(tokens, tokens.end)


def read_documents(path: str, text: Text) -> list[Any]:
    """The documents of a file of JSON lines, as token ids.

    A line has `prompt`, `completion`, `label` (1 where the completion is right, else 0) and `answer` (what a right
    completion says). Lines of the authors' files are understood as well: `prompt_no_assistant`, `prompt` (with the
    completion at its end), `label`, `original_label` and `taskCategory`.

    Raises ValueError that names the line and what it lacks.
    """
    from paperworks.activations.sdm import VerifiedDocument

    documents = []
    with Path(path).expanduser().open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                prompt, completion, label, answer = _fields(json.loads(line))
                documents.append(VerifiedDocument(text.encode(prompt), text.encode(completion), label, answer))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}; wanted {_FORM}") from error
    if not documents:
        raise ValueError(f"{path}: got no lines, wanted {_FORM}")
    return documents


def _fields(row: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """Prompt, completion, label and answer of a line in either form."""
    if "prompt_no_assistant" not in row:
        return row["prompt"], row["completion"], row["label"], str(row["answer"])
    prompt, whole = row["prompt_no_assistant"], row["prompt"]
    # The prefix ends with the mark of the assistant's turn, which the whole text has at the same place.
    if not whole.startswith(prompt):
        raise ValueError("prompt does not begin with prompt_no_assistant")
    return prompt, whole[len(prompt) :], row["label"], ANSWERS[row["taskCategory"]][row["original_label"]]


def same_answer(completion: str, answer: str) -> bool:
    """Whether a completion says `answer`: the first JSON object in both is equal, or else their text."""
    found, wanted = _first_object(completion), _first_object(answer)
    if wanted is not None:
        return found == wanted
    return completion.strip() == answer.strip()


def _first_object(text: str) -> Any:
    match = re.search(r"\{.*?\}", text, re.DOTALL)
    if match is None:
        return None
    try:
        return json.loads(match.group())
    except json.JSONDecodeError:
        return None
