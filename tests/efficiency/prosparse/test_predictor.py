"""Predictors: their two metrics, and that they learn which channels a small model uses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="the models are those of transformers")

from efficiency.prosparse.gated_models import small_llama, token_batches

from paperworks.efficiency.prosparse import (
    ActivationPredictor,
    active_channels,
    fit_predictors,
    predictor_metrics,
    relufy,
)


def test_the_network_has_two_layers_with_relu_between():
    predictor = ActivationPredictor(4, 6, 3, dtype=torch.float64)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    hidden = torch.relu(x @ predictor.down.weight.T + predictor.down.bias)
    torch.testing.assert_close(predictor(x), hidden @ predictor.up.weight.T + predictor.up.bias)
    assert ActivationPredictor(4, 6, 3, device="meta").down.weight.is_meta
    with pytest.raises(ValueError, match="rank: got 0"):
        ActivationPredictor(4, 6, 0)


def test_recall_and_predicted_sparsity_of_a_known_case():
    active = torch.tensor([[True, True, False, False], [True, True, False, False]])
    score = torch.tensor([[1.0, -1.0, 1.0, 0.0], [2.0, 0.5, -1.0, -2.0]])
    assert predictor_metrics(active, score) == (3 / 4, 4 / 8)


@given(n=st.integers(0, 20), seed=st.integers(0, 100))
def test_perfect_predictions_have_full_recall(n, seed):
    active = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) < 0.4
    recall, left_out = predictor_metrics(active, active.float() - 0.5)
    assert recall == 1 if active.any() else math.isnan(recall)
    assert left_out == pytest.approx(1 - active.float().mean().item()) if n else math.isnan(left_out)


def test_metrics_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="score: got shape"):
        predictor_metrics(torch.ones(2, dtype=torch.bool), torch.ones(3))
    with pytest.raises(TypeError, match="wanted bool"):
        predictor_metrics(torch.ones(2), torch.ones(2))


def test_pairs_are_the_inputs_of_the_mlp_and_its_active_channels():
    model, batches = relufy(small_llama()), token_batches(2)
    batches[1]["attention_mask"] = torch.ones(4, 12, dtype=torch.int64)
    batches[1]["attention_mask"][1:] = 0
    mlp = model.model.layers[1].mlp
    inputs, active = active_channels(model, batches, 1)
    assert inputs.shape == (48 + 12, 16)
    torch.testing.assert_close(
        active, (torch.relu(inputs @ mlp.gate_proj.weight.T) * (inputs @ mlp.up_proj.weight.T)) != 0
    )
    assert len(active_channels(model, batches, 1, max_pairs=50)[0]) == 50
    with pytest.raises(ValueError, match="batches: got none"):
        active_channels(model, [], 0)


def test_predictors_learn_the_active_channels():
    model = relufy(small_llama(layers=2))
    before = model.training, torch.get_rng_state()
    predictors = fit_predictors(model, iter(token_batches(30)), rank=24, epochs=12, batch_size=64, lr=1e-2)
    assert (model.training, torch.equal(before[1], torch.get_rng_state())) == (before[0], True)
    assert len(predictors) == 2
    for layer, predictor in enumerate(predictors):
        inputs, active = active_channels(model, token_batches(4, seed=1), layer)
        share = active.float().mean().item()
        recall, left_out = predictor_metrics(active, predictor(inputs))
        assert recall > 0.9
        # a coin that names as many channels would find that share of the active ones
        assert recall > 1 - left_out + 0.2
        assert left_out > 0.5 * (1 - share)
        assert predictor.down.out_features == 24
    assert fit_predictors(model, token_batches(1), epochs=1)[0].down.out_features == 4, "a quarter of the width"


def test_the_same_seed_gives_the_same_predictors():
    model, batches = relufy(small_llama(layers=1)), token_batches(2)
    [one], [same], [other] = (fit_predictors(model, batches, epochs=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.up.weight, same.up.weight)
    assert not torch.equal(one.up.weight, other.up.weight)
    with pytest.raises(ValueError, match="at least 2"):
        fit_predictors(model, [{"input_ids": torch.ones(1, 1, dtype=torch.int64)}])
