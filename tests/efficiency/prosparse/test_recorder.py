"""What is recorded is x1 with its graph: its norm, its zeros, valid tokens only, each pass once."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the models are those of transformers")

from efficiency.prosparse.gated_models import small_llama, token_batches

from paperworks.efficiency.prosparse import ActivationRecorder, relufy

MASK = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] + [0] * 11, [0] * 12])


def recorded(model, batch):
    with ActivationRecorder(model) as recorder:
        model(**batch)
    return recorder


def intermediate(model, batch):
    """x1 of every layer by equation 1, from the inputs of the MLPs."""
    found, handles = [], []
    for layer in model.model.layers:
        mlp = layer.mlp

        def hook(module, args, mlp=mlp):
            found.append(torch.relu(args[0] @ mlp.gate_proj.weight.T) * (args[0] @ mlp.up_proj.weight.T))

        handles.append(mlp.register_forward_pre_hook(hook))
    model(**batch)
    for handle in handles:
        handle.remove()
    return found


def test_norm_and_sparsity_are_those_of_equation_1():
    model, [batch] = relufy(small_llama()), token_batches(1)
    recorder, x1 = recorded(model, batch), intermediate(model, batch)
    torch.testing.assert_close(recorder.l1(), sum(value.abs().mean() for value in x1))
    torch.testing.assert_close(recorder.l1(reduction="token_norm"), sum(v.abs().sum(-1).mean() for v in x1))
    torch.testing.assert_close(recorder.sparsity(), torch.stack([(v == 0).float().mean() for v in x1]))
    assert recorder.sparsity().shape == (3,)


def test_padding_does_not_count():
    model, [batch] = relufy(small_llama()), token_batches(1)
    batch["attention_mask"] = MASK
    recorder, x1 = recorded(model, batch), intermediate(model, batch)
    kept = [value[MASK.bool()] for value in x1]
    torch.testing.assert_close(recorder.l1(MASK), sum(value.abs().mean() for value in kept))
    torch.testing.assert_close(recorder.sparsity(MASK), torch.stack([(v == 0).float().mean() for v in kept]))
    with pytest.raises(ValueError, match="attention_mask"):
        recorder.l1(MASK[:, :5])
    assert recorder.l1(torch.zeros_like(MASK)) == 0
    assert recorder.sparsity(torch.zeros_like(MASK)).isnan().all()


def test_a_zero_of_the_up_branch_counts_and_so_does_minus_zero():
    model, [batch] = relufy(small_llama(layers=1)), token_batches(1)
    nn.init.zeros_(model.model.layers[0].mlp.up_proj.weight)
    assert recorded(model, batch).sparsity() == 1
    model.model.layers[0].mlp.act_fn = nn.Identity()  # negative gates times 0 are -0.0
    assert recorded(model, batch).sparsity() == 1


def test_the_latest_pass_is_held_and_readable_after_the_block():
    model, [first, second] = relufy(small_llama()), token_batches(2)
    with ActivationRecorder(model) as recorder:
        model(**first)
        model(**second)
    assert torch.equal(recorder.l1(), recorded(model, second).l1())
    model(**first)
    assert torch.equal(recorder.l1(), recorded(model, second).l1()), "outside the block nothing is recorded"
    with pytest.raises(RuntimeError, match="run the model inside"):
        ActivationRecorder(model).l1()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_reaches_the_weights_also_under_checkpointing(checkpointing):
    model, [batch] = relufy(small_llama()).double(), token_batches(1)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with ActivationRecorder(model) as recorder:
        model(**batch)
        l1 = recorder.l1()
        l1.backward()
        assert torch.equal(recorder.l1(), l1), "recomputation is not counted"
    twin = relufy(small_llama()).double()
    sum(value.abs().mean() for value in intermediate(twin, batch)).backward()
    found = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-5, atol=1e-9)
    assert found["model.layers.0.mlp.gate_proj.weight"].grad.abs().sum() > 0


def test_bfloat16_is_summed_in_float32():
    model, [batch] = relufy(small_llama()).to(torch.bfloat16), token_batches(1)
    recorder = recorded(model, batch)
    exact = sum(rows.double().abs().mean() for rows in recorder.rows())
    assert recorder.l1().dtype == torch.float32
    assert recorder.l1().item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_wrapper_that_is_called_itself_can_be_recorded():
    model, [batch] = relufy(small_llama()), token_batches(1)
    wrapped = nn.DataParallel(model)
    assert torch.equal(recorded(wrapped, batch).l1(), recorded(model, batch).l1())


def test_the_parts_of_replicas_are_taken_in_order():
    from paperworks.efficiency.prosparse.recorder import _valid_rows

    whole = torch.randn(4, 12, 5)
    together = _valid_rows([whole[:3], whole[3:]], MASK)
    assert torch.equal(together, whole[MASK.bool()])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="gated MLPs"):
        ActivationRecorder(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="mean, token_norm"):
        recorded(relufy(small_llama()), token_batches(1)[0]).l1(reduction="sum")
