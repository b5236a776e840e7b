"""Exported models load in plain transformers, published folders load here, and folders of text become batches."""

import json

import pytest
import torch

pytest.importorskip("transformers", reason="the checkpoints are those of transformers")

import transformers
from efficiency.prosparse.gated_models import small_llama, token_batches

from paperworks.efficiency.prosparse import (
    export_checkpoint,
    load_checkpoint,
    packed_batches,
    read_documents,
    relufy,
    set_threshold,
    thresholds,
)

BATCH = token_batches(1)[0]


def logits(model):
    with torch.no_grad():
        return model.eval()(**BATCH).logits


def test_at_threshold_zero_plain_transformers_loads_it(tmp_path):
    model = relufy(small_llama())
    export_checkpoint(model, tmp_path)
    plain, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert plain.config.hidden_act == "relu"
    assert list(tmp_path.glob("*.safetensors"))
    torch.testing.assert_close(logits(plain), logits(model))
    torch.testing.assert_close(logits(load_checkpoint(tmp_path)), logits(model))


def test_a_threshold_is_no_plain_model(tmp_path):
    model = relufy(small_llama(), 0.01)
    with pytest.raises(ValueError, match="plain=False and load_checkpoint"):
        export_checkpoint(model, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    set_threshold(model, {1: 0.25})
    export_checkpoint(model, tmp_path, plain=False)
    loaded = load_checkpoint(tmp_path)
    assert [float(t) for t in thresholds(loaded)] == pytest.approx([0.01, 0.25, 0.01])
    torch.testing.assert_close(logits(loaded), logits(model))
    set_threshold(model, torch.full((24,), 0.1))
    with pytest.raises(ValueError, match="by channel"):
        export_checkpoint(model, tmp_path, plain=False)
    set_threshold(model, torch.zeros(24))
    export_checkpoint(model, tmp_path / "zeros")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "zeros").hidden_act == "relu"


def published(folder, **changes):
    """A folder as the published checkpoints are: their own model type and code, an activation with a threshold."""
    model = small_llama()
    model.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config |= {
        "model_type": "sparsellama", "architectures": ["SparseLlamaForCausalLM"], "hidden_act": "fatrelu",
        "hidden_act_param": 0.01, "auto_map": {"AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM"},
    }  # fmt: skip
    file.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))
    (folder / "modeling_sparsellama.py").write_text("raise SystemExit('code of the folder was run')")
    return model


def test_a_published_folder_is_a_llama_with_fatrelu(tmp_path):
    model = published(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert [float(t) for t in thresholds(loaded)] == pytest.approx([0.01] * 3)
    assert (loaded.config.model_type, loaded.config.hidden_act) == ("llama", "fatrelu")
    torch.testing.assert_close(logits(loaded), logits(relufy(model, 0.01)))
    assert load_checkpoint(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_act": "silu"}, "got hidden_act 'silu'"),
        ({"hidden_act_param": None}, "without hidden_act_param"),
        ({"num_hidden_layers": 4}, "the weights lack"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, changes, match):
    published(tmp_path, **changes)
    with pytest.raises(ValueError, match=match):
        load_checkpoint(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without config\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="wanted a transformers model"):
        export_checkpoint(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="call relufy first"):
        export_checkpoint(small_llama(), tmp_path)


def test_documents_come_in_the_order_of_their_files(tmp_path):
    (tmp_path / "b.txt").write_text("two\nlines")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "more", "id": 3}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("three")
    (tmp_path / "ignored.md").write_text("no")
    assert list(read_documents(tmp_path)) == ["one", "more", "two\nlines", "three"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"text": 3}', "{}"])
def test_a_line_that_is_no_document_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
        list(read_documents(tmp_path))


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no \.txt or \.jsonl"):
        list(read_documents(tmp_path))


def test_packing_ends_documents_and_leaves_no_padding():
    def encode(text):
        return [int(c) for c in text]

    batches = list(packed_batches(["123", "", "45678", "1"], encode, 0, context=3, batch_size=2))
    assert [batch["input_ids"].tolist() for batch in batches] == [[[1, 2, 3], [0, 0, 4]], [[5, 6, 7], [8, 0, 1]]]
    assert list(packed_batches([], encode, 0, context=3, batch_size=2)) == []
    with pytest.raises(ValueError, match="context: got 0"):
        list(packed_batches(["1"], encode, 0, context=0, batch_size=2))
