"""Swin checkpoints of four layouts become the same network."""

import pickle
import re

import pytest
import torch
from efficiency.dimap.doubles import TimmSwin, transformers_swin
from safetensors.torch import save_file

from paperworks.efficiency.dimap.checkpoints import load_swin, official_names, read_swin_checkpoint, transformers_names

pytest.importorskip("transformers", reason="the network that is built")
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return transformers_swin(depths=[1, 2], embed_dim=16)


@pytest.fixture
def official(network):
    """As the official repository stores it, with the buffers it has."""
    state = official_names(network.state_dict())
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    state["layers.1.blocks.1.attn_mask"] = torch.zeros(1, 16, 16)
    return state


def test_official_names(official):
    assert official["layers.0.downsample.reduction.weight"].shape == (32, 64)
    assert official["layers.1.blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert {"patch_embed.proj.weight", "norm.weight", "head.weight", "layers.0.blocks.0.mlp.fc1.bias"} <= set(official)
    assert not any("attention" in name or "swin" in name for name in official)


def test_there_and_back(network, official):
    back = transformers_names(official_names(official))
    assert {n: v.shape for n, v in back.items()} == {n: v.shape for n, v in network.state_dict().items()}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in back.items())


def test_an_official_pth_file(network, official, tmp_path):
    torch.save({"model": official, "epoch": 3}, tmp_path / "swin.pth")
    loaded = load_swin(tmp_path / "swin.pth", image_size=16)
    torch.testing.assert_close(loaded(IMAGES).logits, network(IMAGES).logits)


def test_timms_newer_layout_moves_the_patch_merging_by_a_stage(network, official, tmp_path):
    newer = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name).replace(
            "head.", "head.fc."
        ): value.clone()
        for name, value in official.items()
        if "attn_mask" not in name
    }
    assert "layers.1.downsample.reduction.weight" in newer
    save_file(newer, tmp_path / "swin.safetensors")
    loaded = load_swin(tmp_path / "swin.safetensors", image_size=16)
    torch.testing.assert_close(loaded(IMAGES).logits, network(IMAGES).logits)


def test_older_files_of_transformers(network, tmp_path):
    older = {}
    for name, value in network.state_dict().items():
        for new, old in (
            ("attention.q_proj", "attention.self.query"),
            ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("relative_position_bias.relative", "self.relative"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            name = name.replace(new, old)
        older[name] = value
    assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in older
    torch.save(older, tmp_path / "pytorch_model.bin")
    loaded = load_swin(tmp_path / "pytorch_model.bin", image_size=16)
    torch.testing.assert_close(loaded(IMAGES).logits, network(IMAGES).logits)


def test_the_doubles_have_timms_names(official):
    net = TimmSwin(dim=16, depths=(1, 2))
    assert set(official_names(net.state_dict())) == {n for n in official if "index" not in n and "attn_mask" not in n}


class Harmful:
    def __reduce__(self):
        return (print, ("this ran",))


def test_nothing_is_run_that_a_file_asks_for(tmp_path, capsys):
    (tmp_path / "swin.pth").write_bytes(pickle.dumps({"model": Harmful()}))
    with pytest.raises(ValueError, match="cannot be read"):
        read_swin_checkpoint(tmp_path / "swin.pth")
    torch.save({"model": Harmful()}, tmp_path / "zip.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read_swin_checkpoint(tmp_path / "zip.pth")
    assert "this ran" not in capsys.readouterr().out


def test_what_is_no_swin(official, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_swin_checkpoint(tmp_path / "missing.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="those of a Swin"):
        read_swin_checkpoint(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no dict of tensors"):
        read_swin_checkpoint(tmp_path / "list.pth")
    del official["norm.weight"]
    torch.save(official, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="no whole Swin"):
        load_swin(tmp_path / "part.pth", image_size=16)
