"""Exported graphs against PyTorch: styles, prompts, single steps with states, and the passes over all of it."""

import numpy as np
import pytest
import torch

from paperworks.efficiency.xamba import export_mamba, op_histogram, xamba

ov = pytest.importorskip("openvino", reason="the export needs OpenVINO")


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=torch.from_numpy(tokens)).logits.numpy()


@pytest.mark.parametrize("style", ["transformers", "naive", "grouped"])
def test_a_prompt(infer, tiny_mamba2, tokens, style):
    graph = export_mamba(tiny_mamba2, batch=2, seq_len=20, style=style)
    assert [(port.get_any_name(), list(port.get_shape())) for port in graph.inputs] == [("input_ids", [2, 20])]
    assert [port.get_any_name() for port in graph.outputs] == ["logits"]
    np.testing.assert_allclose(infer(graph, tokens)[0], logits(tiny_mamba2, tokens), atol=1e-4)
    counts = op_histogram(graph)
    assert (counts["ShapeOf"], counts["Range"], counts["Swish"], counts["SoftPlus"]) == (0, 0, 4, 2)
    if style != "grouped":
        assert counts["CumSum"] == 3 * 2
    assert counts["ReduceSum"] == (5 * 2 if style == "naive" else 0)


def test_a_model_without_head_returns_hidden_states(infer, tiny_mamba2, tokens):
    graph = export_mamba(tiny_mamba2.backbone, batch=2, seq_len=20)
    assert graph.output(0).get_any_name() == "last_hidden_state"
    with torch.no_grad():
        wanted = tiny_mamba2.backbone(input_ids=torch.from_numpy(tokens)).last_hidden_state.numpy()
    np.testing.assert_allclose(infer(graph, tokens)[0], wanted, atol=1e-4)


def test_mamba1_prompt(infer, tiny_mamba, tokens):
    graph = export_mamba(tiny_mamba, batch=2, seq_len=20)
    np.testing.assert_allclose(infer(graph, tokens)[0], logits(tiny_mamba, tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("which", "style"), [("tiny_mamba2", "transformers"), ("tiny_mamba2", "naive"), ("tiny_mamba", "transformers")]
)
def test_single_steps_from_zero_states_equal_the_prompt(infer, request, tokens, which, style):
    from paperworks.efficiency.xamba.inspection import compiled

    model = request.getfixturevalue(which)
    step = export_mamba(model, batch=2, seq_len=1, style=style, mode="decode")
    names = [port.get_any_name() for port in step.inputs]
    assert names == ["input_ids", "conv_state.0", "ssm_state.0", "conv_state.1", "ssm_state.1"]
    assert [port.get_any_name() for port in step.outputs][1:] == [f"new_{name}" for name in names[1:]]
    run = compiled(step, "CPU", 1)
    states = [np.zeros(tuple(port.get_shape()), np.float32) for port in step.inputs[1:]]
    outputs = []
    for t in range(8):
        first, *states = (np.array(v) for v in run([tokens[:, t : t + 1], *states]).to_tuple())
        outputs.append(first)
    np.testing.assert_allclose(np.concatenate(outputs, 1), logits(model, tokens[:, :8]), atol=1e-4)


def test_a_prompt_hands_its_states_to_single_steps(infer, tiny_mamba2, tokens, prompt_graph):
    step = export_mamba(tiny_mamba2, batch=2, seq_len=1, mode="decode")
    _, *states = infer(prompt_graph, tokens)
    new = np.array([[3], [7]])
    found = infer(step, new, *states)[0]
    wanted = logits(tiny_mamba2, np.concatenate([tokens, new], 1))[:, -1:]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_prompt_shorter_than_the_convolution(infer, tiny_mamba2, tokens):
    graph = export_mamba(tiny_mamba2, batch=2, seq_len=2, states=True)
    step = export_mamba(tiny_mamba2, batch=2, seq_len=1, mode="decode")
    _, *states = infer(graph, tokens[:, :2])
    found = infer(step, tokens[:, 2:3], *states)[0]
    np.testing.assert_allclose(found, logits(tiny_mamba2, tokens[:, :3])[:, -1:], atol=1e-4)


def test_the_exact_passes_keep_every_output(infer, prompt_graph, tokens):
    wanted = infer(prompt_graph, tokens)
    before = op_histogram(prompt_graph)
    for options in ({}, {"fuse": True}, {"segsum_difference": True}, {"include_mean": True, "fuse": True}):
        rewritten = xamba(prompt_graph, **options)
        counts = op_histogram(rewritten)
        assert counts["CumSum"] == counts["ReduceSum"] == 0
        assert [port.get_any_name() for port in rewritten.outputs] == [p.get_any_name() for p in prompt_graph.outputs]
        for found, expected in zip(infer(rewritten, tokens), wanted, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)
    assert op_histogram(prompt_graph) == before


def test_options_go_to_the_passes_that_are_on(prompt_graph):
    rewritten = xamba(prompt_graph, cumba=False, reduba=False, actiba=True, realise="cheap", ops=("Swish",))
    counts = op_histogram(rewritten)
    assert (counts["CumSum"], counts["ReduceSum"], counts["Swish"], counts["SoftPlus"]) == (6, 10, 0, 2)
    with pytest.raises(TypeError, match="segments"):
        xamba(prompt_graph, segments=8)


def test_half_precision_weights(infer, tiny_mamba2, tokens):
    graph = export_mamba(tiny_mamba2, batch=2, seq_len=20, fp16=True)
    large = [n for n in graph.get_ordered_ops() if n.get_type_name() == "Constant" and n.shape == [50, 16]]
    assert large
    assert all(node.get_element_type() == ov.Type.f16 for node in large)
    np.testing.assert_allclose(infer(graph, tokens)[0], logits(tiny_mamba2, tokens), atol=0.05)
    np.testing.assert_allclose(infer(xamba(graph), tokens)[0], infer(graph, tokens)[0], atol=1e-4)


def test_limits_of_the_step_size_are_kept(infer, tokens):
    from transformers import Mamba2Config, Mamba2Model

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = Mamba2Config(
            num_heads=4, head_dim=8, vocab_size=50, hidden_size=16, state_size=8, num_hidden_layers=1, n_groups=1,
            chunk_size=4, time_step_limit=(0.01, 0.02),
        )  # fmt: skip
        model = Mamba2Model(config).eval()
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(tokens)).last_hidden_state.numpy()
    for style in ("transformers", "naive", "grouped"):
        graph = export_mamba(model, batch=2, seq_len=20, style=style)
        np.testing.assert_allclose(infer(graph, tokens)[0], wanted, atol=1e-4)


def test_the_model_and_transformers_stay_as_they_are(tiny_mamba2, tokens):
    from transformers.models.mamba2 import modeling_mamba2

    model = tiny_mamba2.to(torch.bfloat16).train()
    before = dict(vars(modeling_mamba2))
    try:
        export_mamba(model, seq_len=3)
        assert model.training
        assert next(model.parameters()).dtype == torch.bfloat16
        assert dict(vars(modeling_mamba2)) == before
    finally:
        tiny_mamba2.to(torch.float32).eval()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"seq_len": 0}, "seq_len"),
        ({"seq_len": 4, "batch": 0}, "batch"),
        ({"seq_len": 4, "style": "fast"}, "style"),
        ({"seq_len": 4, "mode": "generate"}, "mode"),
        ({"seq_len": 2, "mode": "decode"}, "seq_len"),
    ],
)
def test_bad_input(tiny_mamba2, arguments, name):
    with pytest.raises(ValueError, match=name):
        export_mamba(tiny_mamba2, **arguments)


def test_mamba1_has_limits(tiny_mamba):
    with pytest.raises(ValueError, match="style"):
        export_mamba(tiny_mamba, seq_len=4, style="naive")
    with pytest.raises(ValueError, match="token by token"):
        export_mamba(tiny_mamba, seq_len=513)


def test_another_model_is_refused():
    with pytest.raises(TypeError, match="Mamba"):
        export_mamba(torch.nn.Linear(2, 2), seq_len=4)
