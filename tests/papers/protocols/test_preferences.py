"""Preference tuning: the loss and its gradient, log-probabilities under padding, and eight pairs end to end."""

import json
import math

import pytest
import torch

pytest.importorskip("transformers", reason="the language models are those of transformers")

from papers.protocols.language_folders import save_checkpoint

from paperworks.data.preferences import PreferencePair, read_preference_pairs
from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.dpo import (
    all_log_probabilities,
    answer_log_probabilities,
    dpo_loss,
    split_by_prompt,
    tokenize_pair,
)
from paperworks.papers.protocols.language_models import ByteTokens, CharacterTokens, Size, make_language_model
from paperworks.papers.protocols.preferences import pairs_signature, preference_tuning

GELU = Arm("GELU", "torch.nn:GELU", {"approximate": "tanh"})
CRRELU = Arm("CRReLU", "paperworks.activations.crrelu:CRReLU")
SUBJECTS = ("cat", "dog", "mat", "cat sat", "dog ran", "cat ran", "dog sat", "mat sat")


@pytest.fixture
def pairs(tmp_path):
    """Eight prompts; the preferred answer is always the same word, the other one another word."""
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"the {subject} on", "chosen": " the mat", "rejected": " a dog"} for subject in SUBJECTS]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def tuned(arm, file, seed=0, **given):
    settings = complete(preference_tuning, "smoke", {}, {"pairs": str(file), "max_length": 32, **given})
    trial = Trial(seed, "smoke", settings=settings)
    return preference_tuning.function(trial, arm), trial.curves


def log_probability_by_hand(model, answer):
    """log pi of the answer's tokens, one forward pass a token and no padding."""
    total = 0.0
    for place in range(answer.start, len(answer.ids)):
        logits = model(input_ids=answer.ids[None, :place]).logits[0, -1]
        total += logits.log_softmax(-1)[answer.ids[place]].item()
    return total


# --- the loss ---


def test_at_the_reference_the_loss_is_log_2_and_there_is_no_margin():
    policy = torch.randn(5, 2)
    losses, margins = dpo_loss(policy, policy, 0.3)
    torch.testing.assert_close(losses, torch.full((5,), math.log(2)))
    assert margins.abs().max() == 0


def test_the_loss_by_hand():
    policy, reference = torch.tensor([[-3.0, -7.0]]), torch.tensor([[-4.0, -6.5]])
    losses, margins = dpo_loss(policy, reference, 0.1)
    assert margins.item() == pytest.approx(0.1 * (1.0 - -0.5))
    assert losses.item() == pytest.approx(math.log1p(math.exp(-0.15)))


def test_the_gradient_is_that_of_the_paper():
    # DPO, eq. 7: -beta S(r_rejected - r_chosen) for the preferred answer, the opposite for the other.
    policy, reference = torch.randn(6, 2, dtype=torch.float64, requires_grad=True), torch.randn(6, 2).double()
    losses, margins = dpo_loss(policy, reference, 0.7)
    [gradient] = torch.autograd.grad(losses.sum(), policy)
    weight = 0.7 * torch.sigmoid(-margins)
    torch.testing.assert_close(gradient, torch.stack([-weight, weight], 1))


def test_a_shift_that_both_answers_share_changes_nothing():
    policy, reference = torch.randn(4, 2), torch.randn(4, 2)
    for one, other in zip(dpo_loss(policy, reference, 0.5), dpo_loss(policy + 3, reference, 0.5), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# --- log-probabilities ---


def test_log_probabilities_are_of_the_answer_alone_and_padding_does_not_count():
    model = make_language_model("gpt2", 257, Size(32, 2, 16, 2)).eval()
    pair = tokenize_pair(PreferencePair("hello", " you", " and a longer answer"), ByteTokens(), 32)
    with torch.no_grad():
        found, counts = answer_log_probabilities(model, [pair.chosen, pair.rejected], "cpu")
        by_hand = [log_probability_by_hand(model, answer) for answer in (pair.chosen, pair.rejected)]
    assert counts.tolist() == [len(" you") + 1, len(" and a longer answer") + 1]
    assert found.tolist() == pytest.approx(by_hand, rel=1e-5)


def test_they_do_not_depend_on_how_pairs_are_batched():
    model = make_language_model("llama", 257, Size(32, 1, 16, 2))
    texts = [("a", "b", "cc"), ("longer", " x", " yyyy"), ("q", "w", "e")]
    pairs = [tokenize_pair(PreferencePair(*text), ByteTokens(), 32) for text in texts]
    one, many = (all_log_probabilities(model, pairs, "cpu", size) for size in (1, 3))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)
    assert not one.requires_grad


def test_a_pair_that_fits_is_kept_whole_and_closed():
    pair = tokenize_pair(PreferencePair("ab", "cd", "e"), ByteTokens(), 32)
    assert pair.chosen.ids.tolist() == [*b"abcd", 256]
    assert pair.rejected.ids.tolist() == [*b"abe", 256]
    assert pair.chosen.start == pair.rejected.start == 2


def test_a_long_prompt_keeps_its_end_and_a_long_answer_its_beginning():
    prompt, answer = "0123456789" * 3, "abcdefghij" * 3
    pair = tokenize_pair(PreferencePair(prompt, answer, "x"), ByteTokens(), 16)
    assert bytes(pair.chosen.ids.tolist()) == b"23456789abcdefgh"
    assert pair.rejected.ids.tolist() == [*b"23456789x", 256]
    short = tokenize_pair(PreferencePair(prompt, "abc", "x"), ByteTokens(), 16)
    assert short.chosen.ids.tolist() == [*prompt[-12:].encode(), *b"abc", 256], "room that the answers leave is used"


def test_something_stands_before_the_answer_to_an_empty_prompt():
    assert tokenize_pair(PreferencePair("", "a", "b"), ByteTokens(), 8).chosen.ids.tolist() == [256, ord("a"), 256]
    assert tokenize_pair(PreferencePair("", "a", "b"), CharacterTokens("ab"), 8).chosen.start == 1


def test_an_empty_answer_without_an_end_token_is_refused():
    with pytest.raises(ValueError, match="empty answer"):
        tokenize_pair(PreferencePair("ab", "", "b"), CharacterTokens("ab"), 8)


# --- the split ---


def test_all_pairs_of_a_prompt_are_on_one_side():
    pairs = [PreferencePair(f"prompt {i % 5}", f"good {i}", f"bad {i}") for i in range(20)]
    for seed in range(10):
        train, test = split_by_prompt(pairs, torch.Generator().manual_seed(seed), 0.4)
        assert len(train) + len(test) == 20
        assert len({p.prompt for p in test}) == 2
        assert not {p.prompt for p in train} & {p.prompt for p in test}


def test_one_prompt_cannot_be_split():
    with pytest.raises(ValueError, match="at least two"):
        split_by_prompt([PreferencePair("p", "a", "b")] * 3, torch.Generator(), 0.5)
    with pytest.raises(ValueError, match="test_fraction"):
        split_by_prompt([PreferencePair(p, "a", "b") for p in "pq"], torch.Generator(), 1.0)


# --- end to end ---


@pytest.mark.parametrize("arm", [GELU, CRRELU], ids=lambda arm: arm.name)
def test_held_out_pairs_are_ranked_after_tuning(arm, pairs):
    found, curves = tuned(arm, pairs, sft_steps=4, sft_lr=1e-3, dpo_steps=30, dpo_lr=3e-3, test_fraction=0.25)
    assert curves["DPO loss"][0] == pytest.approx(math.log(2), abs=1e-5), "the first step starts at the reference"
    assert curves["DPO loss"][-1] < 0.3
    assert found["reward_accuracy"] == 1.0
    assert found["reward_margin"] > 1.0
    assert found["dpo_loss"] < math.log(2)
    assert len(curves["fine-tuning loss"]) == 4


def test_whichever_answer_is_preferred_is_learned(pairs, tmp_path):
    swapped = tmp_path / "swapped.jsonl"
    rows = [{"prompt": p.prompt, "chosen": p.rejected, "rejected": p.chosen} for p in read_preference_pairs(pairs)]
    swapped.write_text("\n".join(json.dumps(row) for row in rows))
    settings = {"sft_steps": 0, "dpo_steps": 10, "dpo_lr": 3e-3}
    one, other = tuned(GELU, pairs, **settings)[0], tuned(GELU, swapped, **settings)[0]
    assert one["reward_margin"] > 0
    assert other["reward_margin"] > 0


def test_the_activation_is_learned_and_the_same_seed_gives_the_same(pairs):
    found, curves = tuned(CRRELU, pairs)
    assert len(curves["learned parameter by depth"]) == 2
    assert found["learned_parameter"] not in (0.0, 0.01)
    assert tuned(CRRELU, pairs)[0] == found
    assert tuned(CRRELU, pairs, seed=1)[0] != found
    assert tuned(GELU, pairs)[0]["learned_parameter"] == 0


def test_a_checkpoint_is_tuned_with_its_own_tokens(pairs, tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint")
    found, _ = tuned(GELU, pairs, language_model=str(folder), dpo_steps=20, dpo_lr=1e-2)
    assert found["reward_accuracy"] == 1.0
    with pytest.raises(ValueError, match="at most 32"):
        tuned(GELU, pairs, language_model=str(folder), max_length=33)


def test_the_signature_follows_the_file(pairs):
    before = pairs_signature(str(pairs))
    pairs.write_text(pairs.read_text().replace("mat", "hat"))
    assert pairs_signature(str(pairs)) != before
    with pytest.raises(ValueError, match="pairs: got 'nowhere'"):
        pairs_signature("nowhere")
