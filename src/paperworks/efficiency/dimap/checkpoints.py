"""Swin checkpoints from files: the official `.pth`, timm's old and new layout, and transformers' own names.

All become one layout, the official one (``layers.0.blocks.0.attn.qkv.weight``, patch merging at the end of the stage
before), from which a transformers Swin is built without anything but the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_swin", "official_names", "read_swin_checkpoint", "transformers_names"]

_BUFFERS = re.compile(r"(relative_position_index|attn_mask|relative_coords_table)$")

_TABLE = "relative_position_bias_table"

# official name -> transformers name, by suffix and prefix; query, key and value are split apart from these
_TO_TRANSFORMERS = (
    (r"^patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "swin.embeddings.norm."),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.relative_position_bias_table$", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"^norm\.", "swin.layernorm."),
    (r"^head\.", "classifier."),
)
# what files of transformers call them (before version 5 attention and MLP had other names), -> official
_FROM_TRANSFORMERS = (
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:self\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:self\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:self\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (
        r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
        ".attn.relative_position_bias_table",
    ),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)


def read_swin_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a `.safetensors` or `.pth` file, under official names. Nothing but tensors is unpickled.

    The weights may lie under "model" or "state_dict".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read as weights, or that holds no Swin.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights: found no file {file}, wanted a .safetensors or .pth file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip each have errors of their own
        raise ValueError(f"weights: {file} cannot be read as weights: {error}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights: {file} holds no dict of tensors")
    return official_names(state)


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Swin state_dict of any of the layouts, under the official names; buffers that a network makes are left out.

    timm's newer layout has the patch merging at the start of stage i + 1, the official one at the end of stage i.

    Raises ValueError where there is no Swin of patch merging and window attention.
    """
    renamed = {}
    for name, value in state.items():
        if _BUFFERS.search(name):
            continue
        for pattern, new in _FROM_TRANSFORMERS:
            name = re.sub(pattern, new, name)
        renamed[name.replace("head.fc.", "head.")] = value
    if "layers.0.blocks.0.attn.relative_position_bias_table" not in renamed:
        raise ValueError(f"weights: got names such as {list(state)[:3]}, wanted those of a Swin")
    for name in [n for n in renamed if n.endswith(("attn.q.weight", "attn.q.bias"))]:
        parts = [renamed.pop(name.replace(".attn.q.", f".attn.{letter}.")) for letter in "qkv"]
        renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    if "layers.0.downsample.reduction.weight" not in renamed:
        renamed = {
            re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): value
            for name, value in renamed.items()
        }
    return renamed


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names as those of `transformers.SwinForImageClassification`, the fused qkv in three."""
    made = {}
    for name, value in state.items():
        for pattern, new in _TO_TRANSFORMERS:
            name = re.sub(pattern, new, name)
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                made[name.replace(".attn.qkv.", f".attention.{letter}_proj.")] = part.clone()
        else:
            made[name] = value
    return made


def load_swin(path: str | os.PathLike[str], image_size: int = 224) -> nn.Module:
    """A `transformers.SwinForImageClassification` of the size and weights in a checkpoint, in eval mode.

    Raises what `read_swin_checkpoint` raises; ImportError without transformers; ValueError where weights are missing.
    """
    try:
        from transformers import SwinConfig, SwinForImageClassification
    except ImportError as error:
        raise ImportError("Swin checkpoints need transformers: pip install 'paperworks[efficiency]'") from error
    state = read_swin_checkpoint(path)
    blocks = re.compile(r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$")
    tables = {(int(m[1]), int(m[2])): state[name] for name in state if (m := blocks.match(name))}
    stages = 1 + max(stage for stage, _ in tables)
    stem = state["patch_embed.proj.weight"]
    config = SwinConfig(
        image_size=image_size,
        patch_size=stem.shape[-1],
        num_channels=stem.shape[1],
        embed_dim=stem.shape[0],
        depths=[sum(1 for stage, _ in tables if stage == i) for i in range(stages)],
        num_heads=[tables[i, 0].shape[1] for i in range(stages)],
        window_size=(round(len(tables[0, 0]) ** 0.5) + 1) // 2,
        mlp_ratio=len(state["layers.0.blocks.0.mlp.fc1.weight"]) / stem.shape[0],
        num_labels=len(state["head.weight"]) if "head.weight" in state else 1000,
    )
    model: nn.Module = SwinForImageClassification(config)
    try:
        model.load_state_dict(transformers_names(state))
    except RuntimeError as error:
        raise ValueError(f"weights: {path} is no whole Swin classifier: {error}") from error
    return model.eval()
