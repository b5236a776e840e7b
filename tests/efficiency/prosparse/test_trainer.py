"""The Trainer's steps are those of the plain loop, with and without gradient accumulation."""

import pytest
import torch

pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
pytest.importorskip("transformers", reason="the Trainer is that of transformers")

import transformers
from efficiency.prosparse.gated_models import small_llama, token_batches

from paperworks.efficiency.prosparse import ProSparseTrainer, SparsityRegularisation, relufy, train_prosparse


class Rows(torch.utils.data.Dataset):
    def __init__(self, batches):
        self.ids = torch.cat([batch["input_ids"] for batch in batches])

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        mask = torch.ones_like(self.ids[index])
        return {"input_ids": self.ids[index], "labels": self.ids[index], "attention_mask": mask}


def trainer(folder, model, batches, schedule, *, size, accumulation, steps, **more):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        max_steps=steps, learning_rate=1e-2, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=0.0,
        train_sampling_strategy="sequential", logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, **more,
    )  # fmt: skip
    return ProSparseTrainer(model, arguments, train_dataset=Rows(batches), schedule=schedule)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_steps_as_the_plain_loop(tmp_path, accumulation):
    batches, schedule = token_batches(3), SparsityRegularisation([0.5, 2.0], [2, 3], start=1)
    plain, model = relufy(small_llama()), relufy(small_llama())
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-2)
    history = train_prosparse(plain, batches, schedule, optimizer=optimizer)
    run = trainer(
        tmp_path, model, batches, schedule, size=4 // accumulation, accumulation=accumulation, steps=3, optim="sgd",
    )  # fmt: skip
    run.args.weight_decay = 0.0
    run.train()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    logged = [entry for entry in run.state.log_history if "factor" in entry]
    assert [entry["factor"] for entry in logged] == [0.0, 0.5, 2.0]
    assert all(0 < entry["sparsity"] < 1 for entry in logged)
    if accumulation == 1:
        assert [entry["l1"] for entry in logged] == pytest.approx(history.curve("l1"), rel=1e-3)


def test_evaluation_is_that_of_the_language_model(tmp_path):
    batches, schedule = token_batches(1), SparsityRegularisation([5.0], [1])
    model = relufy(small_llama())
    run = trainer(tmp_path, model, batches, schedule, size=4, accumulation=1, steps=1, per_device_eval_batch_size=4)
    found = run.evaluate(Rows(batches))
    with torch.no_grad():
        expected = model(**batches[0], labels=batches[0]["input_ids"]).loss.item()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_resumed_training_goes_on_counting(tmp_path):
    batches, schedule = token_batches(4), SparsityRegularisation([0.5, 2.0], [1, 4])
    more = {"size": 4, "accumulation": 1, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, relufy(small_llama()), batches, schedule, steps=2, **more).train()
    run = trainer(tmp_path, relufy(small_llama()), batches, schedule, steps=4, **more)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    factors = [entry["factor"] for entry in run.state.log_history if "factor" in entry]
    assert factors == [schedule.factor(step) for step in (1, 2, 3, 4)]
