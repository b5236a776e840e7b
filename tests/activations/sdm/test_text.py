import numpy as np
import pytest
import torch

from paperworks.activations.sdm import SDMClassifier, TextVerifier

WORDS = {"good": ["fine", "great", "lovely", "superb"], "bad": ["awful", "poor", "dire", "grim"]}


def texts(n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(["good", "bad"], n)
    return [" ".join(rng.choice(WORDS[label], 5)) for label in labels], labels


def bag_of_letters(batch):
    """(N, 26) letter counts: an encoder without a model."""
    return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in batch], dtype=np.float32)


class Encoder:
    def __init__(self):
        self.batches = []

    def encode(self, batch):
        self.batches.append(len(batch))
        return torch.tensor(bag_of_letters(batch))


def token_pipeline(batch):
    """(1, T, 26) a text, as a feature-extraction pipeline gives."""
    return [[[[float(word.count(chr(97 + i))) for i in range(26)] for word in text.split()]] for text in batch]


def verifier(encoder):
    settings = {"alpha": 0.9, "rounds": 2, "epochs": 6, "lr": 1e-2, "num_filters": 16, "random_state": 0}
    return TextVerifier(encoder, SDMClassifier(**settings), batch_size=16)


@pytest.mark.parametrize("encoder", [bag_of_letters, Encoder(), token_pipeline])
def test_any_encoder_gives_admitted_labels(encoder):
    train, labels = texts(160, 0)
    made = verifier(encoder).fit(train, labels)
    test, expected = texts(40, 1)
    answers = made(test)
    assert [a["label"] for a in answers] == expected.tolist()
    assert any(a["admitted"] for a in answers)
    assert made(test[0]) == answers[0]
    assert set(answers[0]) == {"label", "score", "admitted", "q", "d"}
    assert "exemplar" in str(made.explain(test[:1]))
    assert made.select(test).admitted.tolist() == [a["admitted"] for a in answers]


def test_encoder_gets_batches():
    encoder = Encoder()
    verifier(encoder).embed(["a"] * 40)
    assert encoder.batches == [16, 16, 8]


def test_calibration_texts_are_pooled():
    train, labels = texts(100, 0)
    made = verifier(bag_of_letters).fit(train[:60], labels[:60], train[60:], labels[60:])
    assert len(made.classifier.train_index_) + len(made.classifier.cal_index_) == 100


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="encoder"):
        TextVerifier(3)
    with pytest.raises(ValueError, match="batch_size"):
        TextVerifier(bag_of_letters, batch_size=0)
    with pytest.raises(TypeError, match="strings"):
        verifier(bag_of_letters).embed([1])
    with pytest.raises(ValueError, match="at least one text"):
        verifier(bag_of_letters).embed([])
    with pytest.raises(ValueError, match="one embedding a text"):
        verifier(lambda batch: np.zeros((1, 3))).embed(["a", "b"])
    with pytest.raises(ValueError, match="vectors"):
        verifier(lambda batch: [1.0] * len(batch)).embed(["a"])
