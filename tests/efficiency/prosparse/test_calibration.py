"""Thresholds by layer meet a target of sparsity or of loss; the report counts zeros by layer and position."""

import pytest
import torch

pytest.importorskip("transformers", reason="the models are those of transformers")

from efficiency.prosparse.gated_models import small_llama, token_batches

from paperworks.efficiency.prosparse import (
    ActivationRecorder,
    SparsityRegularisation,
    calibrate_thresholds,
    relufy,
    sparsity_report,
    thresholds,
    train_prosparse,
)
from paperworks.efficiency.prosparse.calibration import mean_loss


def sparsity(model, batches):
    return sparsity_report(model, batches).mean(1)


@pytest.mark.parametrize("target", [0.0, 0.7, 0.9])
def test_every_layer_comes_to_the_target(target):
    model, batches = relufy(small_llama()), token_batches(4)
    start = sparsity(model, batches)
    found = calibrate_thresholds(model, batches, target)
    assert [float(value) for value in thresholds(model)] == pytest.approx(list(found.values()))
    reached = sparsity(model, batches)
    for before, after in zip(start.tolist(), reached.tolist(), strict=True):
        assert after == pytest.approx(max(before, target), abs=0.02)
    assert model.training


def test_the_loss_stays_within_the_limit_and_more_is_not_possible():
    model, batches = relufy(small_llama()), token_batches(4)
    train_prosparse(model, batches * 15, SparsityRegularisation([1.0], [100], start=99), lr=1e-2)
    start = mean_loss(model.eval(), batches)
    found = calibrate_thresholds(model, batches, max_loss_increase=0.05)
    assert mean_loss(model, batches) <= start + 0.05
    assert max(found.values()) > 0
    reached = float(sparsity(model, batches).mean())
    calibrate_thresholds(model, batches, min(0.999, reached + 0.1))
    assert mean_loss(model, batches) > start + 0.05


def test_padding_is_no_data():
    model, [batch] = relufy(small_llama()), token_batches(1)
    padded = {"input_ids": torch.cat([batch["input_ids"], torch.zeros(4, 6, dtype=torch.int64)], 1)}
    padded["attention_mask"] = torch.cat([torch.ones(4, 12), torch.zeros(4, 6)], 1).long()
    assert calibrate_thresholds(model, [padded], 0.8) == pytest.approx(calibrate_thresholds(model, [batch], 0.8))
    assert mean_loss(model, [padded]) == pytest.approx(mean_loss(model, [batch]), rel=1e-5)


def test_the_report_is_the_share_of_zeros_by_layer_and_position():
    model, [long], [short] = relufy(small_llama()), token_batches(1), token_batches(1, 1, (2, 5))
    long["attention_mask"] = torch.ones(4, 12, dtype=torch.int64)
    long["attention_mask"][:, 9:] = 0
    report = sparsity_report(model, [long, short])
    assert report.shape == (3, 12)
    assert report[:, 9:].isnan().all()
    zeros = torch.zeros(3, 5)
    for batch in (long, short):
        with ActivationRecorder(model) as recorder:
            model(**batch)
        for layer, rows in enumerate(recorder.rows()):
            zeros[layer] += (rows.view(*batch["input_ids"].shape, -1) == 0).float().mean(-1).sum(0)[:5]
    torch.testing.assert_close(report[:, :5].float(), zeros / 6)


def test_what_cannot_be_done_leaves_the_thresholds():
    model, batches = relufy(small_llama(), 0.25), token_batches(1)
    for options in ({}, {"target_sparsity": 0.5, "max_loss_increase": 0.1}, {"target_sparsity": 1.0},
                    {"target_sparsity": -0.1}, {"max_loss_increase": -1.0}):  # fmt: skip
        with pytest.raises(ValueError, match=r"calibrate_thresholds|target_sparsity|max_loss_increase"):
            calibrate_thresholds(model, batches, **options)
        assert [float(value) for value in thresholds(model)] == [0.25] * 3
    with pytest.raises(ValueError, match="batches: got none"):
        calibrate_thresholds(model, [], 0.5)
    with pytest.raises(ValueError, match="relufy first"):
        calibrate_thresholds(small_llama(), batches, 0.5)
    with pytest.raises(ValueError, match="batches: got none"):
        sparsity_report(model, [])
