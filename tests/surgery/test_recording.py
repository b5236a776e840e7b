"""What a recorder keeps: graph, latest pass, calls, checkpointing, masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperworks.surgery.recording import Recorder, valid, watching


class Net(nn.Module):
    def __init__(self, mode: str = "") -> None:
        super().__init__()
        self.first, self.second, self.mode = nn.Linear(4, 4), nn.Linear(4, 4), mode

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        if not self.mode:
            return self.body(x)
        out: Tensor = checkpoint(self.body, x, use_reentrant=self.mode == "reentrant")
        return out


def gradient(model: Net, x: Tensor) -> Tensor:
    with Recorder(model, ["second"]) as recorder:
        y = model(x)
        (y.sum() + recorder.values["second"][0].abs().sum()).backward()
    assert model.first.weight.grad is not None
    return model.first.weight.grad


def test_the_recorded_input_has_a_graph_and_is_the_same_under_checkpointing() -> None:
    plain, kept = Net(), Net("checkpoint")
    kept.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4)
    assert torch.allclose(gradient(plain, x), gradient(kept, x))
    with Recorder(kept, ["second"]) as recorder:
        kept(x).sum().backward()
        assert len(recorder.values["second"]) == 1, "recomputation is passed over"


def test_reentrant_checkpointing_is_refused_with_the_way_out() -> None:
    model = Net("reentrant")
    with Recorder(model, ["second"]) as recorder:
        model(torch.randn(3, 4, requires_grad=True))
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            _ = recorder.values


def test_the_latest_pass_is_kept_also_after_the_block_and_the_hooks_go() -> None:
    model = Net()
    a, b = torch.randn(2, 4), torch.randn(5, 4)
    recorder = Recorder(model, ["first", "second"])
    with recorder:
        model(a)
        model(b)
    model(a)
    assert list(recorder.values) == ["first", "second"]
    assert torch.equal(recorder.values["first"][0], b)
    assert not model._forward_pre_hooks
    with recorder, pytest.raises(RuntimeError, match="recording already"):
        recorder.__enter__()


def test_outputs_tuples_and_modules_called_twice() -> None:
    model = nn.Sequential(nn.GRU(3, 2))
    with Recorder(model, ["0"], at="output") as recorder:
        y, _ = model(torch.randn(4, 1, 3))
    assert torch.equal(recorder.values["0"][0], y)
    layer = nn.Linear(3, 3)
    with Recorder(nn.Sequential(layer, layer), ["0"]) as recorder:
        recorder.model(torch.randn(2, 3))
    assert len(recorder.values["0"]) == 2


def test_padding_is_left_out() -> None:
    value = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(valid(value, torch.tensor([[1, 1, 0], [1, 0, 0]])), value[[0, 0, 1], [0, 1, 0]])
    assert valid(value, None).shape == (6, 2)
    with pytest.raises(ValueError, match="attention_mask: got shape \\(2, 2\\), want \\(2, 3\\)"):
        valid(value, torch.ones(2, 2))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="third"):
        Recorder(Net(), ["third"])
    with pytest.raises(ValueError, match="none"):
        Recorder(Net(), [])
    with pytest.raises(TypeError, match="list of names"):
        Recorder(Net(), "first")
    with pytest.raises(ValueError, match="at: got 'both'"):
        Recorder(Net(), ["first"], at="both")  # type: ignore[arg-type]
    with Recorder(Net(), ["first"]) as recorder, pytest.raises(RuntimeError, match="nothing recorded"):
        _ = recorder.values


def test_watching_sees_every_input_and_leaves_no_hook_behind() -> None:
    model = Net()
    seen: list[tuple[str, int]] = []
    with watching({"second": model.second}, lambda name, module, x: seen.append((name, len(x)))):
        model(torch.randn(2, 4))
        model.second(input=torch.randn(3, 4))
    model(torch.randn(2, 4))
    assert seen == [("second", 2), ("second", 3)]
    with pytest.raises(ZeroDivisionError), watching({"second": model.second}, lambda *_: 1 / 0):
        model(torch.randn(2, 4))
    assert not model.second._forward_pre_hooks
