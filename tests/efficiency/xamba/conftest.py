"""Small graphs and models, and a way to run a graph."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def infer():
    """(model, *arrays) -> outputs, on one thread of the CPU plugin in float32."""
    pytest.importorskip("openvino", reason="the graph passes need OpenVINO")
    from paperworks.efficiency.xamba.inspection import compiled

    def run(model, *arrays):
        return [np.array(value) for value in compiled(model, "CPU", 1)(list(arrays)).to_tuple()]

    return run


@pytest.fixture(scope="session")
def unary():
    """(build, shape, dtype) -> a model of one input whose output is build(input)."""
    ov = pytest.importorskip("openvino", reason="the graph passes need OpenVINO")

    def make(build, shape, dtype=np.float32):
        x = ov.opset13.parameter(list(shape), dtype, name="x")
        return ov.Model([build(x)], [x], "one op")

    return make


@pytest.fixture(scope="session")
def tiny_mamba2():
    """Two layers of Mamba-2 with two groups of heads and chunks of eight."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="the models come from transformers")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(
                num_heads=4, head_dim=8, vocab_size=50, hidden_size=16, state_size=8, num_hidden_layers=2,
                n_groups=2, chunk_size=8,
            )
        ).eval()  # fmt: skip


@pytest.fixture(scope="session")
def tiny_mamba():
    """Two layers of Mamba-1."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="the models come from transformers")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=50, hidden_size=16, state_size=8, num_hidden_layers=2)
        ).eval()


@pytest.fixture(scope="session")
def tokens():
    """(2, 20) int64."""
    return np.random.default_rng(0).integers(0, 50, (2, 20))


@pytest.fixture(scope="session")
def prompt_graph(tiny_mamba2):
    """The naive graph of `tiny_mamba2` for (2, 20) tokens, with the states after the prompt. Clone it."""
    pytest.importorskip("openvino", reason="the graph passes need OpenVINO")
    from paperworks.efficiency.xamba import export_mamba

    return export_mamba(tiny_mamba2, batch=2, seq_len=20, style="naive", states=True)
