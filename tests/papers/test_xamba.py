"""The card of XAMBA, its protocols on tiny models, and the loading of a checkpoint."""

import numpy as np
import pytest
import torch

from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import openvino_graphs
from paperworks.papers.protocols.openvino_device import checkpoint_signature, openvino_device
from paperworks.papers.protocols.xamba_accuracy import rewritten_language_model
from paperworks.papers.xamba import NPU, paper

pytest.importorskip("openvino", reason="graphs need OpenVINO")
pytest.importorskip("transformers", reason="the models come from transformers")

ACTIBA = "paperworks.efficiency.xamba:actiba"


@pytest.fixture
def small_layer(monkeypatch):
    """Mamba2-130m's layer made small."""
    small = {"HEADS": 4, "HEAD_SIZE": 8, "STATE": 8, "HIDDEN": 16, "CHUNK": 8}
    for name, value in small.items():
        monkeypatch.setattr(openvino_graphs, name, value)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as `save_pretrained` leaves it: a tiny Mamba-2 with a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("mamba2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = Mamba2Config(
            num_heads=2, head_dim=8, hidden_size=8, state_size=4, n_groups=1, chunk_size=8, num_hidden_layers=1,
            vocab_size=256,
        )  # fmt: skip
        Mamba2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def trial(protocol, **given):
    return Trial(0, "smoke", settings=complete(protocol, "smoke", {}, given))


def test_every_claim_of_the_abstract_is_on_the_card():
    kinds = {claim.id: claim.kind for claim in paper.claims}
    assert sum(kind == "exact" for kind in kinds.values()) == 8
    assert kinds["xamba-on-an-npu"] == kinds["actiba-costs-little-in-a-checkpoint"] == "needs"
    assert kinds["reduba-speeds-up-the-sum"] == "measured"
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert criterion.baseline is not None or criterion.control is not None
    for finding in paper.findings:
        assert set(finding.shown_by) <= set(kinds)


def test_the_npu_is_asked_for():
    assert "device=" in (NPU.missing({"device": "CPU"}) or "")
    assert NPU.missing({"device": "NPU"}) is None


def test_accuracy_of_a_trained_model():
    """A table with many segments changes the loss less than ReLU in SoftPlus's place does."""
    settings = {"layers": 1, "dim": 16, "heads": 2, "context": 16, "validation_windows": 32, "steps": 2}
    found = {}
    for name, options in (
        ("64", {"segments": 64}),
        ("4", {"segments": 4}),
        ("relu", {"ops": ["SoftPlus"], "realise": "cheap"}),
        ("none", {"realise": "native"}),
    ):
        made = trial(rewritten_language_model, **settings)
        found[name] = rewritten_language_model.function(made, Arm(name, ACTIBA, options))
    assert found["none"]["loss_change"] == found["none"]["output_error"] == 0
    assert found["none"]["loss"] == found["relu"]["loss_before"]
    assert 0 < found["64"]["output_error"] < found["4"]["output_error"]
    assert found["64"]["loss_change"] < 1e-3 < found["relu"]["output_error"]


def test_accuracy_of_a_checkpoint(checkpoint, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    settings = {"language_model": checkpoint, "text": f"text:{text}", "context": 8, "validation_windows": 16}
    made = trial(rewritten_language_model, **settings)
    found = rewritten_language_model.function(made, Arm("table", ACTIBA, {"segments": 32}))
    assert 0 < found["loss_change"] < 0.01
    assert found["loss_before"] == pytest.approx(np.log(256), rel=0.5)


@pytest.mark.parametrize("target", ["cumba", "reduba", "xamba"])
def test_a_device_by_name(small_layer, target):
    made = trial(openvino_device, device="CPU", tokens=8)
    found = openvino_device.function(made, Arm(target, f"paperworks.efficiency.xamba:{target}", {}))
    assert found["relative_error"] < 1e-4
    assert found["seconds"] > 0
    assert found["ratio"] > 0
    with pytest.raises(ValueError, match="device"):
        openvino_device.function(
            trial(openvino_device, device="NPU.9", tokens=8), Arm("x", "paperworks.efficiency.xamba:cumba")
        )


def test_a_checkpoint_on_a_device(checkpoint):
    made = trial(openvino_device, checkpoint=checkpoint, tokens=8)
    found = openvino_device.function(made, Arm("x", "paperworks.efficiency.xamba:xamba", {"actiba": True}))
    assert 0 < found["relative_error"] < 0.1
    assert checkpoint_signature("") == ""
    assert checkpoint_signature(checkpoint)


def test_a_kept_graph_computes_the_same(small_layer):
    from paperworks.efficiency.xamba import export_mamba
    from paperworks.efficiency.xamba.inspection import compiled

    graph = export_mamba(openvino_graphs.mamba2_layer(0), seq_len=8)
    again = openvino_graphs.kept_graph(Trial(), lambda: graph, length=8)
    tokens = openvino_graphs.some_tokens(0, 1, 8)
    np.testing.assert_array_equal(compiled(again, "CPU", 1)(tokens)[0], compiled(graph, "CPU", 1)(tokens)[0])


@pytest.mark.parametrize("graph", openvino_graphs.OPS)
def test_the_timed_ops_keep_their_value(small_layer, graph):
    from paperworks.efficiency.xamba.inspection import compiled

    model = openvino_graphs.OPS[graph]()
    generator = np.random.default_rng(0)
    inputs = [-np.abs(generator.normal(size=tuple(p.get_shape()))).astype(np.float32) for p in model.inputs]
    wanted = np.array(compiled(model, "CPU", 1)(inputs)[0])
    for rewrite in ("CumBA", "ReduBA", "ReduBA, fused", "difference"):
        found = compiled(openvino_graphs.rewritten(model, rewrite), "CPU", 1)(inputs)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-3)
    with pytest.raises(ValueError, match="rewrite"):
        openvino_graphs.rewritten(model, "magic")
