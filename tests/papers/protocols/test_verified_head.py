"""SDM networks on a random GPT-2 of two layers: documents are read, the output layer is trained, answers are judged."""

import json

import pytest
import torch

from paperworks.lab.nouns import Arm
from paperworks.lab.settings import complete
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.verified_head import (
    documents_signature,
    load_speaker,
    read_documents,
    same_answer,
    verified_generation,
)

pytest.importorskip("transformers", reason="the language models are those of transformers")
NETWORK = "paperworks.papers.protocols.verified_head:network"


@pytest.fixture
def files(tmp_path):
    """Questions after a letter with right and wrong completions: (for training and calibration, for the test)."""
    paths = []
    for name, n in (("train", 24), ("test", 6)):
        path = tmp_path / f"{name}.jsonl"
        with path.open("w") as file:
            for i in range(n):
                answer, other = ("aa", "bb") if i % 3 else ("bb", "aa")
                row = {"prompt": f"{i % 4}?", "completion": answer if i % 2 else other, "label": i % 2}
                file.write(json.dumps({**row, "answer": answer}) + "\n\n")
        paths.append(str(path))
    return paths


def trial_of(files: list[str], seed: int = 0, **given: object) -> Trial:
    given = {"documents": files[0], "test_documents": files[1], "max_new_tokens": 3, **given}
    return Trial(seed, "smoke", "cpu", complete(verified_generation, "smoke", {}, given))


@pytest.mark.filterwarnings("ignore:no threshold reaches", "ignore:.*duplicate a training point")
def test_a_network_is_trained_and_answers(files):
    trial = trial_of(files, network_lr=0.05, network_epochs=2)
    found = verified_generation.function(trial, Arm("network", NETWORK))
    assert set(found) == set(verified_generation.metrics)
    assert all(0 <= value <= 1 for value in found.values())
    assert len(trial.curves["admitted calibration answers"]) == 3, "before training and after each epoch"


@pytest.mark.filterwarnings("ignore:no threshold reaches", "ignore:.*duplicate a training point")
def test_untrained_it_answers_as_the_model_does(files):
    trial = trial_of(files)
    model, text = load_speaker("gpt2", trial)
    answers = []
    for document in read_documents(files[1], text):
        ids = torch.tensor([document.prompt])
        with torch.no_grad():
            for _ in range(3):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
        answers.append(same_answer(text.decode(ids[0, len(document.prompt) :].tolist()), document.task_label))
    found = verified_generation.function(trial, Arm("untrained", NETWORK, {"epochs": 0}))
    assert found["task_accuracy"] == sum(answers) / len(answers)


@pytest.mark.filterwarnings("ignore:no threshold reaches", "ignore:.*duplicate a training point")
def test_a_checkpoint_in_a_folder_is_trained(files, tmp_path):
    from papers.protocols.language_folders import save_checkpoint

    folder = save_checkpoint(tmp_path / "model")
    trial = trial_of(files, language_model=str(folder))
    assert 0 <= verified_generation.function(trial, Arm("network", NETWORK))["task_accuracy"] <= 1


def test_documents_are_read_as_bytes_with_their_answers(files):
    _, text = load_speaker("gpt2", Trial())
    first = read_documents(files[0], text)[0]
    assert bytes(first.prompt) == b"0?"
    assert bytes(first.completion) == b"aa"
    assert (first.label, first.task_label) == (0, "bb")
    assert text.decode([*first.completion, text.end, 65]) == "aa", "up to the end token"


def test_the_authors_files_are_read(tmp_path):
    prompt = "<|user|>\nClassify the sentiment. REVIEW: fine<|end|>\n<|assistant|>\n"
    rows = [
        {"taskCategory": 0, "original_label": 1, "label": 0, "said": '{"sentiment": "negative"}'},
        {"taskCategory": 1, "original_label": 0, "label": 1, "said": '{"correctness": false}'},
    ]
    path = tmp_path / "sentiment.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(
                {**row, "prompt_no_assistant": prompt, "prompt": f"{prompt}{row['said']}<|end|>\n<|assistant|>\n"}
            )
            for row in rows
        )
    )
    _, text = load_speaker("gpt2", Trial())
    found = read_documents(str(path), text)
    assert [d.label for d in found] == [0, 1]
    assert [d.task_label for d in found] == ['{"sentiment": "positive"}', '{"correctness": false}']
    assert bytes(found[0].completion).startswith(b'{"sentiment": "negative"}<|end|>')
    said = [text.decode(d.completion) for d in found]
    assert [same_answer(s, d.task_label) for s, d in zip(said, found, strict=True)] == [False, True]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "a", "completion": "b", "label": 1}', "answer"),
        ('{"prompt": "a", "completion": "b", "label": 2, "answer": "c"}', "label must be 0 or 1"),
        ('{"prompt": "a", "completion": "", "label": 1, "answer": "c"}', "at least one token"),
        ('{"prompt": "a"', "JSON"),
        ('{"prompt": "ab", "prompt_no_assistant": "b", "label": 1}', "does not begin"),
        ("", "no lines"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path, line, what):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    _, text = load_speaker("gpt2", Trial())
    with pytest.raises(ValueError, match=what):
        read_documents(str(path), text)


def test_answers_are_compared_as_json_where_they_are_json():
    answer = '{"correctness": true}'
    assert same_answer('Sure: {"correctness":true} <|end|>', answer)
    assert not same_answer('{"correctness": "true"}', answer)
    assert not same_answer('{"correctness": true', answer)
    assert same_answer(" Paris\n", "Paris")
    assert not same_answer("paris", "Paris")


def test_the_signature_follows_the_file(files):
    before = documents_signature(files[0])
    with open(files[0], "a") as file:
        file.write("\n")
    assert documents_signature(files[0]) != before
    assert documents_signature("") == ""
    with pytest.raises(ValueError, match="wanted a file"):
        documents_signature(f"{files[0]}.none")
