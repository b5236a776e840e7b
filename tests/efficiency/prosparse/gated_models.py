"""A small Llama with random weights, and batches for it."""

import torch
from torch import nn


def small_llama(layers: int = 3, d: int = 16, d_ff: int = 24, vocabulary: int = 11, seed: int = 0) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=d, intermediate_size=d_ff, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=32, use_cache=False, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def token_batches(n: int, seed: int = 0, shape: tuple[int, int] = (4, 12), vocabulary: int = 11) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, vocabulary, shape, generator=generator)} for _ in range(n)]
