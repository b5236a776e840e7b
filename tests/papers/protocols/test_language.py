"""Language modelling: the same weights and windows for every arm, a loss in nats, and a user's own model and text."""

import math

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the language models are those of transformers")

from papers.protocols.language_folders import WORDS, save_checkpoint

from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language import language_modelling
from paperworks.papers.protocols.language_models import (
    ARCHITECTURES,
    ByteTokens,
    CharacterTokens,
    Size,
    language_model_signature,
    load_checkpoint,
    make_language_model,
    next_token_losses,
    warm_up_then_cosine,
)
from paperworks.papers.protocols.language_training import fit, held_out_split, language_task, task_loss
from paperworks.surgery.activations import replace_activations

RELU, GELU = Arm("ReLU", "torch.nn:ReLU"), Arm("GELU", "torch.nn:GELU")
CRRELU = "paperworks.activations.crrelu:CRReLU"
SMALL = {"layers": 1, "dim": 16, "heads": 2, "context": 16, "batch_size": 8, "validation_windows": 8}


def trained(arm: Arm, seed: int = 0, **given: object) -> tuple[dict[str, float], dict[str, list[float]]]:
    settings = complete(language_modelling, "smoke", {}, {**SMALL, **given})
    trial = Trial(seed, "smoke", settings=settings)
    assert language_modelling.function is not None
    return language_modelling.function(trial, arm), trial.curves


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text("the cat sat on a mat the dog ran on the mat " * 60)
    return f"text:{file}"


def test_the_loss_is_the_cross_entropy_of_the_next_token_in_nats():
    model = make_language_model("gpt2", 7, Size(8, 1, 8, 2)).eval()
    inputs, targets = torch.randint(0, 7, (2, 3, 8))
    losses = next_token_losses(model, inputs, targets)
    logits = model(input_ids=inputs).logits
    assert losses.shape == (3, 8)
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(losses, expected)
    nn.init.zeros_(model.get_input_embeddings().weight)  # tied to the head: every token is equally likely
    assert next_token_losses(model, inputs, targets).mean().item() == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_causal_and_its_activations_can_be_replaced(architecture):
    model = make_language_model(architecture, 11, Size(12, 2, 16, 2))
    assert len(replace_activations(model, nn.ReLU).replaced) == 2
    model.eval()
    tokens = torch.randint(0, 11, (1, 12))
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 11
    before, after = model(input_ids=tokens).logits, model(input_ids=changed).logits
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warm_up_then_cosine(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[55] == pytest.approx(1.0)  # half way down the cosine
    assert 0 < rates[-1] < 0.01


def test_a_text_that_repeats_itself_is_learned(story):
    found, curves = trained(GELU, steps=100, lr=2e-2, text=story)
    losses = curves["validation loss"]
    assert len(losses) == 4
    assert losses[0] > 2 * losses[-1]
    assert found["validation_loss"] == losses[-1] < 0.5


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_arms_of_a_seed_share_weights_and_windows(architecture):
    # With eps fixed at 0 CRReLU is ReLU: any difference could only come from other weights or windows.
    relu, _ = trained(RELU, language_model=architecture)
    same, _ = trained(Arm("eps = 0", CRRELU, {"eps": 0.0, "learnable": False}), language_model=architecture)
    other, _ = trained(RELU, seed=1, language_model=architecture)
    assert same["validation_loss"] == pytest.approx(relu["validation_loss"], rel=1e-5)
    assert abs(other["validation_loss"] - relu["validation_loss"]) > 1e-4


def test_the_parameter_of_the_activation_is_reported_by_depth():
    found, curves = trained(Arm("CRReLU", CRRELU), layers=2)
    assert len(curves["learned parameter by depth"]) == 2
    assert found["learned_parameter"] != 0.01
    assert found["learned_parameter"] == pytest.approx(sum(curves["learned parameter by depth"]) / 2)
    assert trained(GELU)[0]["learned_parameter"] == 0


def test_a_task_is_trained_on_the_loss_that_is_given():
    settings = complete(language_modelling, "smoke", {}, {**SMALL, "language_model": "mamba2"})
    trial = Trial(0, "smoke", settings=settings)
    task, twin = language_task(trial), language_task(trial)
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), twin.model.parameters(), strict=True))
    assert sum(len(run) for run in task.train) > task.validation[0].numel()
    assert task.validation[0].shape == task.validation[1].shape == (8, 16)
    before, seen = task_loss(task, trial), []

    def squared(model, inputs, targets):
        seen.append(inputs)
        return next_token_losses(model, inputs, targets).square().mean()

    losses = fit(task, trial, steps=6, lr=1e-2, loss=squared, batch_size=3)
    assert len(seen) == 6
    assert seen[0].shape == (3, 16)
    assert losses[-1] == task_loss(task, trial) < before
    first = seen[0]
    fit(twin, trial, steps=1, lr=1e-2, loss=squared, batch_size=3)
    assert torch.equal(seen[-1], first), "one seed and purpose draw the same windows"
    fit(twin, trial, steps=1, lr=1e-2, loss=squared, batch_size=3, purpose="other")
    assert not torch.equal(seen[-1], first)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    trained(GELU)
    assert torch.equal(state, torch.get_rng_state())


def test_a_checkpoint_reads_its_own_tokens(checkpoint, story):
    arm, given = Arm("CRReLU", CRRELU), {"language_model": str(checkpoint), "text": story, "steps": 20}
    found, _ = trained(arm, **given)
    assert found["validation_loss"] < math.log(len(WORDS))
    assert found["learned_parameter"] not in (0.0, 0.01)
    assert trained(arm, **given)[0] == found, "dropout, weights and windows come from the seed"


def test_a_checkpoint_starts_from_its_weights(checkpoint):
    model, tokens = load_checkpoint(str(checkpoint))
    twin, _ = load_checkpoint(str(checkpoint))
    assert tokens.size == len(WORDS)
    assert tokens.end == 0
    assert tokens.encode("the cat sat").tolist() == [2, 3, 4]
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_characters_and_bytes():
    assert CharacterTokens("abca").encode("cab").tolist() == [2, 0, 1]
    assert ByteTokens().encode("é!").tolist() == [0xC3, 0xA9, ord("!")]
    assert len(ByteTokens().encode("")) == 0


@pytest.mark.parametrize("n", [200, 5000, 200_000])
def test_training_and_validation_hold_every_token_once(n):
    train, held_out = held_out_split(torch.arange(n), 16, 3)
    assert sorted(torch.cat(train + held_out).tolist()) == list(range(n))
    assert all(len(run) > 16 for run in held_out[:-1])


def test_the_signature_of_a_folder_follows_its_files(checkpoint, tmp_path):
    assert language_model_signature("gpt2") == language_model_signature("llama") == ""
    copy = save_checkpoint(tmp_path / "copy", positions=64)
    assert language_model_signature(str(checkpoint)) != language_model_signature(str(copy))


def test_what_cannot_be_used_is_refused_by_name(checkpoint, story, tmp_path):
    with pytest.raises(ValueError, match="at most 32"):
        trained(GELU, language_model=str(checkpoint), text=story, context=33)
    with pytest.raises(ValueError, match="dim: got 15"):
        trained(GELU, dim=15)
    with pytest.raises(ValueError, match="gpt2, llama"):
        trained(GELU, language_model="torch.nn:Linear")
    with pytest.raises(ValueError, match=r"config\.json"):
        trained(GELU, language_model=str(tmp_path))
    untold = save_checkpoint(tmp_path / "untold")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (untold / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="tokenizer's files"):
        load_checkpoint(str(untold))
    with pytest.raises(ValueError, match="tokenizer of 10 tokens for a model of 9"):
        load_checkpoint(str(save_checkpoint(tmp_path / "narrow", vocabulary=9)))
