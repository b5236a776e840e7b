"""Settings are typed, checked, completed by tier, and refused by name."""

from __future__ import annotations

from typing import Any

import fake_papers
import pytest

from paperworks.lab.nouns import Setting, Tiers
from paperworks.lab.settings import check_known, complete, convert, parse


def test_the_users_value_wins_over_the_claims_over_the_default() -> None:
    noise = fake_papers.noise
    assert complete(noise, "smoke", {}, {}) == {"scale": 1.0, "rounds": 1, "sleep": 0.0}
    assert complete(noise, "full", {"rounds": Tiers(smoke=5, desk=7)}, {})["rounds"] == 7
    assert complete(noise, "desk", {"scale": 3.0}, {"scale": "4"})["scale"] == 4.0


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [(int, "3", 3), (int, 3.0, 3), (float, "2e-3", 0.002), (bool, "no", False), (str, "x", "x")],
)
def test_values_are_converted(kind: type, value: Any, wanted: Any) -> None:
    found = convert(Setting("s", kind, None, "help"), value)
    assert found == wanted
    assert type(found) is kind


@pytest.mark.parametrize(("kind", "value"), [(int, "3.5"), (int, 3.5), (float, "fast"), (bool, "maybe"), (int, "")])
def test_bad_values_name_the_setting_and_what_was_wanted(kind: type, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"setting 's': got {value!r}, wanted {kind.__name__}"):
        convert(Setting("s", kind, None, "help"), value)


def test_a_check_refuses_by_name() -> None:
    with pytest.raises(ValueError, match=r"setting 'scale': got -1.0, wanted > 0"):
        complete(fake_papers.noise, "smoke", {}, {"scale": "-1"})


def test_pairs_are_parsed() -> None:
    assert parse(["data=idx:a=b", "epochs=3"]) == {"data": "idx:a=b", "epochs": "3"}
    for bad in ("epochs", "=3"):
        with pytest.raises(ValueError, match="wanted name=value"):
            parse([bad])
    with pytest.raises(ValueError, match="given twice"):
        parse(["a=1", "a=2"])


def test_unknown_names_list_what_exists() -> None:
    claims = fake_papers.paper_with_claims().claims
    check_known({"scale": 2}, claims)
    with pytest.raises(ValueError, match=r"'colour' is not known here. Settings: scale \(multiplies the score\)"):
        check_known({"colour": 1}, claims)
