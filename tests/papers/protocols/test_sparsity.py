"""Sparsification: arms of a seed share one SiLU model; the recipe sets factor and threshold. Decoding: a checkpoint."""

import json

import pytest
import torch

pytest.importorskip("transformers", reason="the language models are those of transformers")

from efficiency.prosparse.gated_models import small_llama, token_batches
from papers.protocols.language_folders import WORDS, save_checkpoint

from paperworks.efficiency.prosparse import relufy, sparsity_report
from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.sparsity import sparse_decoding, sparsification
from paperworks.papers.protocols.sparsity_training import Recipe, threshold_that_adds

RECIPE = "paperworks.papers.protocols.sparsity_training:Recipe"
DECODING = "paperworks.papers.protocols.sparsity_decoding:Decoding"
SMALL = {
    "layers": 1, "dim": 16, "heads": 2, "context": 16, "batch_size": 8, "validation_windows": 8, "base_steps": 4,
    "steps": 6, "lr": 1e-2,
}  # fmt: skip
STRONG = {"peaks": [30.0], "ends": [1.0]}


def sparsified(options: dict, seed: int = 0, **given: object) -> tuple[dict[str, float], dict[str, list[float]]]:
    trial = Trial(seed, "smoke", settings=complete(sparsification, "smoke", {}, {**SMALL, **given}))
    assert sparsification.function is not None
    return sparsification.function(trial, Arm("arm", RECIPE, options)), trial.curves


def test_the_recipe_is_a_schedule_in_shares_of_the_steps():
    schedule = Recipe([0.1, 0.4], [0.5, 1.0], start=0.25).schedule(200)
    assert (schedule.start, schedule.steps) == (50, [100, 200])
    assert {Recipe().schedule(7).factor(step) for step in range(1, 8)} == {0.0}


def test_arms_of_a_seed_start_from_one_model_and_see_the_same_windows():
    relu, curves = sparsified({})
    _, late_curves = sparsified({"peaks": [1.0], "ends": [1.0], "start": 0.67})
    assert curves["factor by step"] == [0.0] * 6
    assert late_curves["factor by step"] == [0.0] * 4 + [1.0] * 2
    assert late_curves["lm_loss by step"][:4] == curves["lm_loss by step"][:4]
    assert late_curves["lm_loss by step"][5] != curves["lm_loss by step"][5]
    assert sparsified({})[0] == relu
    assert sparsified({}, seed=1)[0] != relu


def test_the_penalty_adds_zeros_and_costs_loss():
    relu, _ = sparsified({}, steps=30)
    strong, curves = sparsified(STRONG, steps=30)
    assert strong["sparsity"] > relu["sparsity"] + 10
    assert strong["validation_loss"] > relu["validation_loss"]
    assert strong["least_sparse_layer"] == min(curves["sparsity by layer"])


def test_the_threshold_adds_the_points_it_was_chosen_for():
    plain, _ = sparsified({})
    shifted, _ = sparsified({"points": 5.0})
    assert shifted["sparsity"] == pytest.approx(plain["sparsity"] + 5, abs=1.5)
    model, batches = relufy(small_llama()), token_batches(4)
    before = 100 * float(sparsity_report(model, batches).mean())
    assert threshold_that_adds(model, batches, 3.0) > 0
    assert 100 * float(sparsity_report(model, batches).mean()) == pytest.approx(before + 3, abs=0.2)
    threshold_that_adds(model, batches, 80.0)
    assert float(sparsity_report(model, batches).mean()) > 0.999, "there is no more than all"


def test_other_models_are_refused_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    sparsified({})
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="without gated MLPs"):
        sparsified({}, language_model="gpt2")


# --- decoding ---


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder in the form of the published checkpoints, with a tokenizer and random weights."""
    folder = save_checkpoint(tmp_path_factory.mktemp("published"))
    small_llama(vocabulary=len(WORDS)).save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config |= {"model_type": "sparsellama", "hidden_act": "fatrelu", "hidden_act_param": 0.5}
    config["auto_map"] = {"AutoConfig": "configuration_sparsellama.SparseLlamaConfig"}
    file.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a.txt").write_text("the cat sat on a mat " * 200)
    (folder / "b.jsonl").write_text('{"text": "the dog ran on the mat a cat sat"}\n' * 40)
    return folder


def decoded(published, documents, options: dict, seed: int = 0, **given: object) -> dict[str, float]:
    given = {"checkpoint": str(published), "documents": str(documents), "context": 16, "rounds": 6, **given}
    trial = Trial(seed, "smoke", settings=complete(sparse_decoding, "smoke", {}, given))
    assert sparse_decoding.function is not None
    return sparse_decoding.function(trial, Arm("arm", DECODING, options))


def test_a_published_checkpoint_decodes(published, documents):
    found = decoded(published, documents, {})
    at_zero = decoded(published, documents, {"threshold": 0.0})
    assert found["sparsity"] > at_zero["sparsity"] + 5
    assert found["speedup"] > 0
    assert (found["recall"], found["predicted_sparsity"]) == (100, 0)


def test_predictors_are_trained_on_documents_and_measured_on_others(published, documents):
    trained = decoded(published, documents, {"predicted": True, "epochs": 60}, predictor_windows=60)
    untrained = decoded(published, documents, {"predicted": True, "epochs": 0})
    assert trained["recall"] > untrained["recall"] + 5
    assert 0 < trained["predicted_sparsity"] < 100


def test_what_is_missing_is_said(published, documents, tmp_path):
    with pytest.raises(ValueError, match="fewer than 4000 tokens"):
        decoded(published, documents, {}, context=4000)
    with pytest.raises(ValueError, match=r"no \.txt or \.jsonl"):
        decoded(published, tmp_path, {})
    with pytest.raises(ValueError, match=r"without config\.json"):
        decoded(tmp_path, documents, {})
