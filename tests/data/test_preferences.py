from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.data.preferences import PreferencePair, _pair, read_preference_pairs

HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant: An apple.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant: A stone.",
}
SHP = {"history": "How?", "human_ref_A": "So.", "human_ref_B": "Thus.", "labels": 0, "score_A": 1}


def write(path: Path, *rows: Any, packed: bool = False) -> Path:
    content = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def test_the_three_forms_may_stand_in_one_file(tmp_path: Path) -> None:
    plain = {"prompt": "p", "chosen": "c", "rejected": "r", "other": 1}
    path = write(tmp_path / "x.jsonl", plain, "", HH, SHP, SHP | {"labels": 1}, "")
    assert read_preference_pairs(path) == [
        PreferencePair("p", "c", "r"),
        PreferencePair(
            "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant:", " An apple.", " A stone."
        ),
        PreferencePair("How?", "Thus.", "So."),
        PreferencePair("How?", "So.", "Thus."),
    ]


def test_gzip_files_and_line_separators_inside_texts(tmp_path: Path) -> None:
    row = {"prompt": "a\u2028b\x85c", "chosen": "é\r\n", "rejected": ""}
    path = write(tmp_path / "x.jsonl.gz", row, row, packed=True)
    assert read_preference_pairs(str(path)) == [PreferencePair("a\u2028b\x85c", "é\r\n", "")] * 2


@given(st.text(), st.text(), st.text())
def test_hh_prompt_and_answer_give_back_the_dialogue(prompt: str, a: str, b: str) -> None:
    turn = "\n\nAssistant:"
    a, b = a.replace(turn, ""), b.replace(turn, "")
    row = {"chosen": prompt + turn + a, "rejected": prompt + turn + b}
    pair = _pair(json.dumps(row).encode())
    assert pair.prompt + pair.chosen == row["chosen"]
    assert pair.prompt + pair.rejected == row["rejected"]
    assert pair.prompt.endswith(turn)
    assert turn not in pair.chosen


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "found no JSON"),
        ("[" * 100_000, "found no JSON"),
        ("[1]", "a JSON list; wanted an object"),
        ({"chosen": "c"}, "no '"),
        ({"prompt": "p", "chosen": "c"}, "no 'rejected' among ['chosen', 'prompt']"),
        ({"prompt": 1, "chosen": "c", "rejected": "r"}, "'prompt' of type int"),
        ({"chosen": [{"role": "user"}], "rejected": []}, "'chosen' of type list"),
        ({"chosen": "c", "rejected": "r"}, "in 'chosen' and no 'prompt'"),
        (HH | {"rejected": "r"}, "in 'rejected' and no 'prompt'"),
        (HH | {"rejected": HH["rejected"].replace("fruit", "plant")}, "part before the last"),
        (SHP | {"labels": 2}, "found labels 2; wanted 1 (A is preferred) or 0 (B is)"),
        (SHP | {"labels": True}, "found labels True"),
        ({k: v for k, v in SHP.items() if k != "labels"}, "found labels None"),
        ({k: v for k, v in SHP.items() if k != "human_ref_B"}, "no 'human_ref_B'"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path / "x.jsonl", HH, "", row)
    with pytest.raises(ValueError) as caught:
        read_preference_pairs(path)
    assert str(caught.value).startswith(f"{path}, line 3: found ")
    assert words in str(caught.value)
    with pytest.warns(UserWarning, match="1 of 2 pairs left out; first: .*line 3") as warned:
        assert len(read_preference_pairs(path, on_error="skip")) == 1
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_a_file_without_pairs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no pair"):
        read_preference_pairs(write(tmp_path / "x.jsonl", "", "  "))
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(ValueError, match="found no pair"):
        read_preference_pairs(write(tmp_path / "x.jsonl", "{}"), on_error="skip")
    with pytest.raises(ValueError, match="found nothing"):
        read_preference_pairs(tmp_path / "none")
    with pytest.raises(ValueError, match="on_error: got 'ignore'"):
        read_preference_pairs(tmp_path, on_error="ignore")  # type: ignore[arg-type]
