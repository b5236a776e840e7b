"""Training adds lambda times the norm, makes activations sparser, and goes on exactly where it was interrupted."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the models are those of transformers")

from efficiency.prosparse.gated_models import small_llama, token_batches

from paperworks.efficiency.prosparse import ActivationRecorder, SparsityRegularisation, relufy, train_prosparse

OFF = SparsityRegularisation([1.0], [1000], start=999)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_one_step_descends_the_loss_of_equation_2():
    [batch] = token_batches(1)
    batch["attention_mask"] = torch.ones(4, 12, dtype=torch.int64)
    batch["attention_mask"][0, 6:] = 0
    schedule = SparsityRegularisation([0.5], [1])
    model, twin = relufy(small_llama()), relufy(small_llama())
    history = train_prosparse(model, [batch], schedule, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with ActivationRecorder(twin) as recorder:
        lm = twin(**batch, labels=labels).loss
    l1 = recorder.l1(batch["attention_mask"])
    (lm + 0.5 * l1).backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter -= 0.1 * parameter.grad
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    [record] = history.records
    assert record == {
        "step": 1, "factor": 0.5, "lm_loss": pytest.approx(lm.item()), "l1": pytest.approx(l1.item()),
        "sparsity": pytest.approx(recorder.sparsity(batch["attention_mask"]).mean().item()),
    }  # fmt: skip


def test_the_norm_falls_and_sparsity_rises_where_the_factor_says_so():
    batches = token_batches(60)
    plain, sparse = relufy(small_llama()), relufy(small_llama())
    before = train_prosparse(plain, batches, OFF, lr=3e-3).records[-1]
    history = train_prosparse(sparse, batches, SparsityRegularisation([1.0, 3.0], [20, 50], start=5), lr=3e-3)
    assert history.curve("factor")[:5] == [0.0] * 5
    assert history.records[-1]["factor"] == 3.0
    assert history.records[-1]["l1"] < 0.5 * before["l1"]
    assert history.records[-1]["sparsity"] > before["sparsity"] + 0.05


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path):
    batches, schedule = token_batches(8), SparsityRegularisation([0.1, 0.4], [3, 8], start=1)
    whole = relufy(small_llama())
    expected = train_prosparse(whole, batches, schedule, lr=1e-3)

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    file = tmp_path / "folder" / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train_prosparse(relufy(small_llama()), batches, schedule, lr=1e-3, callback=stop, resume=file)
    state = torch.load(file, weights_only=True)
    assert state["step"] == 3

    steps = []
    other = relufy(small_llama(seed=1))
    history = train_prosparse(
        other, iter(batches), schedule, lr=1e-3, callback=lambda record: steps.append(record["step"]), resume=file
    )
    assert steps == [4, 5, 6, 7, 8]
    assert history.records == expected.records
    assert same_weights(other, whole)
    again = train_prosparse(other, batches, schedule, resume=file)
    assert again.records == expected.records, "nothing is left to do"
    assert same_weights(other, whole)


def test_what_is_no_checkpoint_of_it_is_refused_and_left(tmp_path):
    file = tmp_path / "other.pt"
    torch.save({"model": {}}, file)
    content = file.read_bytes()
    with pytest.raises(ValueError, match=r"resume: .* has no optimizer, records, step"):
        train_prosparse(relufy(small_llama()), token_batches(1), OFF, resume=file)
    assert file.read_bytes() == content


def test_labels_of_a_batch_are_used_and_the_mode_is_restored():
    model, [batch] = relufy(small_llama()).eval(), token_batches(1)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 4] = 3
    expected = model(**batch, labels=labels).loss.item()
    modes = []
    history = train_prosparse(
        model, [{**batch, "labels": labels}], OFF, callback=lambda record: modes.append(model.training)
    )
    assert history.records[0]["lm_loss"] == pytest.approx(expected)
    assert modes == [True]
    assert not model.training


def test_frozen_parameters_stay():
    model = relufy(small_llama())
    model.model.embed_tokens.requires_grad_(False)
    before = model.model.embed_tokens.weight.clone()
    train_prosparse(model, token_batches(2), OFF, lr=1e-2)
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_no_batch_is_no_step_and_a_batch_without_tokens_is_refused():
    model = relufy(small_llama())
    assert train_prosparse(model, [], OFF).records == []
    with pytest.raises(ValueError, match="wanted input_ids or labels"):
        train_prosparse(model, [{"attention_mask": torch.ones(1, 3)}], OFF)
    with pytest.raises(ValueError, match="gated MLPs"):
        train_prosparse(nn.Linear(2, 2), [], OFF)
