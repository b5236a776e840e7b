"""Addresses of readers, of senders and of the site: one spelling each, and what is refused."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.addresses import checked_address, checked_base_url, checked_sender, one_line
from paperworks.feed.mail import confirmation_mail


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Reader@Example.ORG", "Reader@example.org"),
        ("  a.b+tag@example.org ", "a.b+tag@example.org"),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
        ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
        ("o'hara_{x}@example.org", "o'hara_{x}@example.org"),
    ],
)
def test_an_address_has_one_spelling(given: str, kept: str) -> None:
    assert checked_address(given) == kept
    assert checked_address(kept) == kept


@pytest.mark.parametrize(
    "malformed",
    [
        "", " ", "a", "a@", "@b.org", "a@b", "a@@b.org", "a@b@c.org", "a b@c.org", "a@b.org\n", "\na@b.org",
        "a@b.org\r\nBcc: c@d.org", "a\x00@b.org", "a@b.org\x7f", "a\u2028@b.org", "a\u200b@b.org", "a@b\t.org",
        ".a@b.org", "a.@b.org", "a..b@c.org", '"a b"@c.org', "a(comment)@b.org", "<a@b.org>", "A <a@b.org>",
        "a@b.org,c@d.org", "a@[127.0.0.1]", "a@127.0.0.1", "a@-b.org", "a@b-.org", "a@b_c.org", "a@b..org", "a@b.org.",
        "a@.org", "é@b.org", "a" * 65 + "@b.org", "a@" + "b" * 64 + ".org", "a@" + "bbbbbbbb." * 28 + "org",
        "a@xn--.org", "a@b.org?subject=x", "a@b%0a.org",
    ],
)  # fmt: skip
def test_malformed_addresses_are_refused(malformed: str) -> None:
    with pytest.raises(ValueError, match=r"^email: got"):
        checked_address(malformed)


def test_an_address_has_to_be_text() -> None:
    with pytest.raises(TypeError, match="email: got NoneType"):
        checked_address(None)  # type: ignore[arg-type]


@given(st.text(max_size=300))
def test_whatever_is_typed_in_is_refused_or_becomes_a_plain_address(text: str) -> None:
    for typed in (text, f"{text}@example.org", f"a@{text}.org", f"a@example.org{text}"):
        try:
            found = checked_address(typed)
        except ValueError:
            continue
        assert len(found) <= 254
        assert re.fullmatch(r"[!-~]+@[a-z0-9.-]+", found)
        assert (
            confirmation_mail(found, "t", base_url="https://x.org", sender="p@x.org")["To"].addresses[0].addr_spec
            == found
        )


@pytest.mark.parametrize(
    ("given", "name", "address"),
    [
        ("papers@localhost", "", "papers@localhost"),
        ("paperworks <papers@Example.org>", "paperworks", "papers@example.org"),
        ('"Papers, daily" <papers@example.org>', "Papers, daily", "papers@example.org"),
        ("Größe <papers@bücher.example>", "Größe", "papers@xn--bcher-kva.example"),
    ],
)
def test_a_sender_is_a_name_and_an_address(given: str, name: str, address: str) -> None:
    found = checked_sender(given)
    assert (found.display_name, found.addr_spec) == (name, address)


@pytest.mark.parametrize(
    "malformed",
    ["", "papers", "a@b.org, c@d.org", "x <a@b.org", "x <a@b.org> y", "a@b.org\r\nBcc: c@d.org", "x <é@b.org>",
     "=?utf-8?q?x=0d=0aBcc=3a?= <a@b.org>", "x <a@b_c.org>"],
)  # fmt: skip
def test_malformed_senders_are_refused(malformed: str) -> None:
    with pytest.raises(ValueError, match=r"^sender: got"):
        checked_sender(malformed)


@pytest.mark.parametrize(
    "malformed",
    ["", "papers.example.org", "ftp://a.org", "https://", "https://a.org?x=1", "https://a.org#x", "https://a.org/\n",
     'https://a.org/"', "https://a.org/>", "https://[::1", "javascript:alert(1)"],
)  # fmt: skip
def test_malformed_addresses_of_the_site_are_refused(malformed: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url: got"):
        checked_base_url(malformed)


@given(st.text(max_size=200))
def test_one_line_is_one_line(text: str) -> None:
    found = one_line(text)
    assert len(found.splitlines()) <= 1
    assert found == one_line(found)
    assert not {unicodedata.category(c) for c in found} & {"Cc", "Cs", "Zl", "Zp"}


def test_words_of_other_scripts_stay_whole() -> None:
    for text in ("می‌خواهم", "क्‍ष", "研究", "👩‍🔬", "Größe"):
        assert one_line(text) == text
    assert one_line("a\u202egpj.exe\r\nBcc: x") == "a gpj.exe Bcc: x"
