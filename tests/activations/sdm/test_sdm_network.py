import copy
import json

import numpy as np
import pytest
import torch

from paperworks.activations.sdm import (
    SDMClassifier,
    VerifiedDocument,
    VerifiedHead,
    document_features,
    fit_verifier,
    greedy_completions,
    hidden_states,
    train_sdm_network,
)
from paperworks.activations.sdm.sdm_network import _training_tokens, beta_schedule

transformers = pytest.importorskip("transformers", reason="SDM networks train transformers models")

VOCABULARY, END = 24, 1


def documents(n, seed):
    """Right completions repeat the first two tokens of the prompt and end; wrong ones are random."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        prompt = rng.integers(2, VOCABULARY, rng.integers(3, 6)).tolist()
        completion = [*prompt[:2], END] if i % 2 else rng.integers(2, VOCABULARY, 3).tolist()
        made.append(VerifiedDocument(prompt, completion, i % 2, task_label=prompt[0]))
    return made


@pytest.fixture(scope="module")
def model():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=END
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def verifier(model):
    classifier = SDMClassifier(alpha=0.6, rounds=2, epochs=8, lr=1e-2, num_filters=16, random_state=0)
    return fit_verifier(model, documents(60, 0), classifier)


def test_features_are_the_mean_and_the_last_hidden_state_of_the_unpadded_document(model):
    sequences = [[3, 4, 5], [6, 7, 8, 9, 10], [2]]
    states = hidden_states(model, sequences, batch_size=3)
    features = document_features(model, sequences)
    model.eval()
    for s, h, f in zip(sequences, states, features, strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([s]), output_hidden_states=True).hidden_states[-1][0]
        assert torch.allclose(h, alone, atol=1e-5)
        np.testing.assert_allclose(f, torch.cat([alone.mean(0), alone[-1]]), atol=1e-5)


def test_untrained_head_generates_what_the_model_does(model):
    prompts = [d.prompt for d in documents(6, 1)]
    head = VerifiedHead(model.get_output_embeddings())
    own = model.get_output_embeddings()
    model.eval()
    for prompt, completion in zip(prompts, greedy_completions(model, head, prompts, 4, batch_size=2), strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, pad_token_id=END
        )
        wanted = out[0, len(prompt) :].tolist()
        stop = wanted.index(END) + 1 if END in wanted else len(wanted)
        assert completion == wanted[:stop]
    assert model.get_output_embeddings() is own


def test_generation_follows_the_head_and_stops_at_the_end_token(model):
    head = VerifiedHead(torch.zeros(VOCABULARY, 16))
    prompt = [5, 6, 7]
    h = hidden_states(model, [prompt])[0][-1]
    with torch.no_grad():
        head.positive.weight[9] = 100 * h  # the first token is 9
    assert greedy_completions(model, head, [prompt], 3)[0][0] == 9
    with torch.no_grad():
        head.positive.weight.zero_()[END] = 100 * h
    assert greedy_completions(model, head, [prompt], 3) == [[END]]


def test_a_float32_head_decodes_for_a_half_precision_model(model):
    small = copy.deepcopy(model).to(torch.bfloat16)
    head = VerifiedHead(small.get_output_embeddings()).float()
    completions = greedy_completions(small, head, [[5, 6, 7]], 3)
    assert len(completions[0]) == 3 or completions[0][-1] == END
    assert document_features(small, [[5, 6, 7]]).dtype == np.float32


def test_training_tokens_are_the_states_that_predict_the_completion(model):
    docs = [d for d in documents(8, 2) if d.label == 1]
    states, targets, owners = _training_tokens(model, docs, 3)
    assert targets.tolist() == [t for d in docs for t in d.completion]
    assert owners.tolist() == [i for i, d in enumerate(docs) for _ in d.completion]
    sequence = [*docs[0].prompt, *docs[0].completion]
    wanted = hidden_states(model, [sequence])[0][len(docs[0].prompt) - 1 : -1]
    assert torch.allclose(states[:3], wanted, atol=1e-6)


def test_beta_runs_linearly_within_an_epoch():
    assert beta_schedule(4, 0.1) == pytest.approx([0.0, 0.025, 0.05, 0.075])


def test_training_changes_the_positive_half_only_and_keeps_the_best_epoch(model, verifier):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    run = train_sdm_network(
        model, verifier, documents(40, 3), documents(20, 4), max_new_tokens=3, epochs=3, batch_size=20, lr=3e-2, seed=1
    )
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert len(run.accepted) == 4
    assert len(run.losses) == 3
    assert run.best_epoch == run.accepted.index(max(run.accepted))  # an epoch must beat those before it
    moved = not torch.equal(run.head.positive.weight, run.head.negative)
    assert moved == (run.best_epoch > 0)
    assert torch.equal(run.head.negative, model.get_output_embeddings().weight)


def test_accepted_documents_are_admitted_verified_and_right(model, verifier, monkeypatch):
    calibration = documents(20, 4)
    asked = []

    def task_check(document, completion):
        asked.append((document.task_label, completion))
        return len(asked) % 2 == 0

    run = train_sdm_network(
        model, verifier, documents(20, 3), calibration, max_new_tokens=3, epochs=0, task_check=task_check
    )
    head = VerifiedHead(model.get_output_embeddings())
    completed = greedy_completions(model, head, [d.prompt for d in calibration], 3)
    assert asked == [(d.task_label, c) for d, c in zip(calibration, completed, strict=True)]
    features = document_features(model, [[*d.prompt, *c] for d, c in zip(calibration, completed, strict=True)])
    result = verifier.select(features)
    right = np.arange(1, 21) % 2 == 0
    assert run.accepted == [int((result.admitted & (result.prediction == 1) & right).sum())]


def test_similarity_and_distance_of_generated_documents_use_the_training_ecdf(verifier):
    state = verifier.state_
    x = np.random.default_rng(0).normal(size=(10, 32))
    prediction, q, d = state.training_evidence(x)
    evidence = state.evidence(x)
    assert (prediction == evidence.prediction).all()
    assert (q == evidence.q).all()
    known = [state.train_d_nearest[(state.train_q > 0) & (state.y_train == c)] for c in (0, 1)]
    wanted = [min(1 - (k < v).mean() for k in known) for v in evidence.d_nearest]
    np.testing.assert_allclose(d, wanted)


def test_a_run_that_was_cut_off_ends_like_one_that_was_not(model, verifier, tmp_path):
    settings = {"max_new_tokens": 3, "epochs": 3, "batch_size": 20, "lr": 3e-2, "seed": 2}
    docs, calibration = documents(30, 5), documents(10, 6)
    whole = train_sdm_network(model, verifier, docs, calibration, **settings)
    calls = []

    def interrupt(document, completion):
        calls.append(document)
        if len(calls) == 25:  # within the count after the second epoch
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        train_sdm_network(model, verifier, docs, calibration, **settings, task_check=interrupt, folder=tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["losses"] == whole.losses[:1]
    resumed = train_sdm_network(model, verifier, docs, calibration, **settings, folder=tmp_path)
    assert resumed.losses == whole.losses
    assert resumed.accepted == whole.accepted
    assert torch.equal(resumed.head.positive.weight, whole.head.positive.weight)
    assert len(list(tmp_path.glob("epoch-*.safetensors"))) == 1
    again = train_sdm_network(model, verifier, docs, calibration, **settings, folder=tmp_path)
    assert again.losses == whole.losses
    with pytest.raises(ValueError, match="holds a run with"):
        train_sdm_network(model, verifier, docs, calibration, **settings | {"lr": 1.0}, folder=tmp_path)


def test_bad_input_is_named(model, verifier, fitted):
    docs = documents(4, 0)
    with pytest.raises(ValueError, match="label 1"):
        train_sdm_network(model, verifier, docs[::2], docs, max_new_tokens=2)
    with pytest.raises(ValueError, match="verifier"):
        train_sdm_network(model, fitted[0], docs, docs, max_new_tokens=2)
    with pytest.raises(ValueError, match="batch_size"):
        train_sdm_network(model, verifier, docs, docs, max_new_tokens=2, batch_size=0)
    with pytest.raises(ValueError, match="lr"):
        train_sdm_network(model, verifier, docs, docs, max_new_tokens=2, lr=0.0)
    with pytest.raises(ValueError, match="label must"):
        VerifiedDocument([1], [2], 2)
    with pytest.raises(ValueError, match="at least one token"):
        VerifiedDocument([], [2], 1)
