"""Causal language models of the language protocols, each with its tokens.

`gpt2`, `llama`, `mamba` and `mamba2` are those architectures, small and with random weights; anything else is a folder
saved by transformers, or a transformers id. Their parts are replaced afterwards, as in any other model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.data.text import char_vocabulary, encode
from paperworks.surgery.model_spec import parse_spec
from paperworks.surgery.models import model_signature

ARCHITECTURES = ("gpt2", "llama", "mamba", "mamba2")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class Tokens(Protocol):
    """Text as numbers below `size`; `end` is the number that ends a text, where there is one."""

    @property
    def size(self) -> int: ...

    @property
    def end(self) -> int | None: ...

    def encode(self, text: str) -> Tensor:
        """`text` as (N,) int64, nothing added at either end."""


class CharacterTokens:
    """Each distinct character of `text` is a token."""

    end = None

    def __init__(self, text: str) -> None:
        self.vocabulary = char_vocabulary(text)

    @property
    def size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> Tensor:
        return encode(text, self.vocabulary)


class ByteTokens:
    """The bytes of UTF-8, and 256 to end a text: for any text, with no vocabulary to fit."""

    size, end = 257, 256

    def encode(self, text: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int64))


class CheckpointTokens:
    """A transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def size(self) -> int:
        return len(self.tokenizer)

    @property
    def end(self) -> int | None:
        end: int | None = self.tokenizer.eos_token_id
        return end

    def encode(self, text: str) -> Tensor:
        ids: Sequence[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


@dataclass(frozen=True)
class Size:
    """Of a model that is made here: tokens it sees at once, blocks, width, attention heads."""

    context: int
    layers: int
    dim: int
    heads: int


def is_made_here(spec: str) -> bool:
    """Whether `spec` names an architecture with random weights, not a checkpoint."""
    return spec in ARCHITECTURES


def make_language_model(architecture: str, vocabulary_size: int, size: Size) -> nn.Module:
    """A small model of one of `ARCHITECTURES`, without dropout; weights from torch's global generator.

    The states of `mamba` and `mamba2` are 16 and 32 numbers a channel; `mamba2` has `size.heads` heads of one group and
    scans chunks of at most 32 tokens, `mamba` knows no heads. Neither bounds the context.

    Raises ValueError for another name, or a width that the heads do not divide.
    """
    if size.dim % size.heads:
        raise ValueError(f"dim: got {size.dim} for {size.heads} heads, wanted a multiple of the heads")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: got {architecture!r}, wanted one of {', '.join(ARCHITECTURES)}")
    import transformers

    made: nn.Module
    common: dict[str, Any] = {
        "vocab_size": vocabulary_size, "use_cache": False, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if architecture == "gpt2":
        made = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_positions=size.context, n_embd=size.dim, n_layer=size.layers, n_head=size.heads, resid_pdrop=0.0,
                embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=_deviation(size.dim), **common,
            )
        )  # fmt: skip
    elif architecture == "llama":
        made = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                max_position_embeddings=size.context, hidden_size=size.dim, intermediate_size=8 * size.dim // 3,
                num_hidden_layers=size.layers, num_attention_heads=size.heads,
                initializer_range=_deviation(size.dim), **common,
            )
        )  # fmt: skip
    elif architecture == "mamba":
        made = transformers.MambaForCausalLM(
            transformers.MambaConfig(
                hidden_size=size.dim, num_hidden_layers=size.layers, state_size=16, pad_token_id=None, **common
            )
        )
    else:
        made = transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(
                hidden_size=size.dim, num_hidden_layers=size.layers, state_size=32, num_heads=size.heads,
                head_dim=2 * size.dim // size.heads, expand=2, n_groups=1, chunk_size=min(size.context, 32),
                pad_token_id=None, tie_word_embeddings=True, **common,
            )
        )  # fmt: skip
    return made


def _deviation(dim: int) -> float:
    """Standard deviation of new weights: GPT-2's 0.02 at its width of 768, and as much signal at another width."""
    return 0.02 * float(np.sqrt(768 / dim))


def load_checkpoint(spec: str) -> tuple[nn.Module, CheckpointTokens]:
    """The causal language model and tokenizer of a folder saved by transformers, or of a transformers id.

    Weights are read from safetensors only, in float32, and no code that comes with the checkpoint is run. Raises
    ValueError for a folder that lacks weights or a tokenizer, or whose tokenizer does not fit the model; OSError for
    an id that is neither cached nor can be fetched.
    """
    parsed = parse_spec(spec)
    if parsed.module:
        raise ValueError(
            f"language model: got {spec!r}, wanted {', '.join(ARCHITECTURES)}, a folder or a transformers id"
        )
    if parsed.folder is not None:
        _check_folder(spec, parsed.folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(parsed.folder) if parsed.folder is not None else parsed.hub_id
    model = AutoModelForCausalLM.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )
    model.config.use_cache = False
    tokens = CheckpointTokens(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    known = model.get_input_embeddings().num_embeddings
    if tokens.size > known:
        raise ValueError(f"language model {spec!r}: got a tokenizer of {tokens.size} tokens for a model of {known}")
    return model, tokens


def _check_folder(spec: str, folder: Path) -> None:
    files = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(files) or "none"
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        wanted = "config.json and *.safetensors, as save_pretrained writes them (pickled weights are not read)"
        raise ValueError(f"language model {spec!r}: wanted {wanted}; files: {listed}")
    if not set(TOKENIZER_FILES) & set(files):
        raise ValueError(f"language model {spec!r}: wanted the tokenizer's files beside the weights; files: {listed}")


def language_model_signature(spec: str) -> str:
    """Digest of what `spec` names outside this module: the files of a folder, the commit of an id."""
    return "" if is_made_here(spec) else model_signature(spec)


def check_context(model: nn.Module, context: int) -> None:
    """Raise ValueError where the model takes no context of that many tokens."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and context > most:
        raise ValueError(f"context: got {context} tokens, the model takes at most {most}")


def next_token_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of every target in nats: (B, L) int64 twice -> (B, L)."""
    logits = model(input_ids=inputs).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)


def warm_up_then_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate by step: linear over the first tenth, then half a cosine down to zero."""
    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        passed = (step - warm_up) / max(1, steps - warm_up)
        return 0.5 * (1 + float(np.cos(np.pi * passed)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
