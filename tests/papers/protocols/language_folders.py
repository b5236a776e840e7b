"""A checkpoint folder as transformers saves it: a small GPT-2 with random weights and a tokenizer of words."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("[END]", "[UNKNOWN]", "the", "cat", "sat", "on", "a", "mat", "dog", "ran")


def save_checkpoint(folder: Path, *, positions: int = 32, vocabulary: int = len(WORDS)) -> Path:
    """Save the model and tokenizer into `folder`; the tokenizer knows `WORDS`, the first of which ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[1]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=WORDS[0], unk_token=WORDS[1])
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_positions=positions, n_embd=16, n_layer=2, n_head=2,
                bos_token_id=None, eos_token_id=0,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    return folder
