"""Pairs of answers of which one is preferred, as DPO and reward models train on them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paperworks.data.sources import read_file

TURN = "\n\nAssistant:"
"""What opens an answer in the dialogues of Anthropic's HH data."""


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a better (`chosen`) and a worse (`rejected`) answer, all three as the file has them."""

    prompt: str
    chosen: str
    rejected: str


def read_preference_pairs(path: str | Path, *, on_error: Literal["raise", "skip"] = "raise") -> list[PreferencePair]:
    """The pairs in a JSON-lines file (plain or gzip), each line in one of three forms.

    - `prompt`, `chosen`, `rejected`: taken as they are.
    - `chosen`, `rejected` (HH): whole dialogues. The prompt is the text up to and with the last "\\n\\nAssistant:",
      which both must share; the rest of each is its answer.
    - `history`, `human_ref_A`, `human_ref_B`, `labels` (SHP): the prompt is `history`; `labels` is 1 where A is
      preferred, 0 where B is.

    Args:
        path: the file; empty lines do not count.
        on_error: "raise" at the first line that is in none of these forms, or "skip" such lines with one warning that
            counts them (the published HH data has pairs that part before the last answer).

    Raises ValueError naming the file, the line, what was found and what was wanted; also where no pair is left.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: got {on_error!r}, wanted 'raise' or 'skip'")
    pairs: list[PreferencePair] = []
    problems: list[str] = []
    # not splitlines(): JSON may hold other line separators inside a text
    for number, line in enumerate(read_file(Path(path)).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(line))
        except ValueError as error:
            problem = f"{path}, line {number}: {error}"
            if on_error == "raise":
                raise ValueError(problem) from error
            problems.append(problem)
    if problems:
        message = f"{path}: {len(problems)} of {len(problems) + len(pairs)} pairs left out; first: {problems[0]}"
        warnings.warn(message, UserWarning, stacklevel=2)
    if not pairs:
        raise ValueError(f"{path}: found no pair; wanted JSON lines with prompt, chosen and rejected")
    return pairs


def _pair(line: bytes) -> PreferencePair:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"found no JSON ({error}); wanted an object on one line") from error
    if not isinstance(row, dict):
        raise ValueError(f"found a JSON {type(row).__name__}; wanted an object")
    if "history" in row:
        return _shp_pair(row)
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if "prompt" in row:
        return PreferencePair(_text(row, "prompt"), chosen, rejected)
    prompt, other = (text[: text.rfind(TURN) + len(TURN)] if TURN in text else None for text in (chosen, rejected))
    if prompt is None or other is None:
        which = "chosen" if prompt is None else "rejected"
        raise ValueError(f"found no {TURN!r} in {which!r} and no 'prompt'; wanted a prompt or whole dialogues")
    if prompt != other:
        raise ValueError(f"found dialogues that part before the last {TURN!r}; wanted one prompt for both answers")
    return PreferencePair(prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def _shp_pair(row: Mapping[str, Any]) -> PreferencePair:
    history, a, b = (_text(row, key) for key in ("history", "human_ref_A", "human_ref_B"))
    label = row.get("labels")
    if type(label) is not int or label not in (0, 1):
        raise ValueError(f"found labels {label!r}; wanted 1 (A is preferred) or 0 (B is)")
    return PreferencePair(history, a, b) if label == 1 else PreferencePair(history, b, a)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = f"{key!r} of type {type(value).__name__}" if key in row else f"no {key!r} among {sorted(row)}"
        raise ValueError(f"found {found}; wanted text")
    return value
