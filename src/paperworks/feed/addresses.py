"""Addresses of mail and of the web, as they come from strangers: checked, and put into one spelling."""

from __future__ import annotations

import re
import unicodedata
from email.headerregistry import Address
from email.policy import SMTP
from typing import Any
from urllib.parse import urlsplit

__all__ = ["checked_address", "checked_base_url", "checked_sender", "one_line"]

_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LONGEST = 254  # RFC 5321: 256 with the angle brackets of the path
_LONGEST_LOCAL = 64
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, line and paragraph separators, what turns the direction of writing, and lone surrogates."""


def one_line(text: str) -> str:
    """`text` on one line: without control characters, and all white space single."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


def checked_address(email: str) -> str:
    """A mail address as it is kept: the domain in lower case and, where it has other letters, as IDNA (``xn--``).

    The part before the @ is that of RFC 5321's dot-string, ASCII, and keeps its case: whether case matters is the
    business of its server. Quoted local parts, addresses that need SMTPUTF8, address literals and domains of one label
    are refused. Blanks around it are dropped.

    Raises TypeError for no text, ValueError for no such address.
    """
    if not isinstance(email, str):
        raise TypeError(f"email: got {type(email).__name__}, wanted a string")
    text = email.strip(" ")
    wanted = "wanted an address such as name@example.org"
    if len(text) > _LONGEST:
        raise ValueError(f"email: got {len(text)} characters, wanted at most {_LONGEST}")
    if any(unicodedata.category(c)[0] in "CZ" for c in text):
        raise ValueError(f"email: got {text!r} with a blank or a control character in it, {wanted}")
    local, at, domain = text.partition("@")
    if not at or "@" in domain:
        raise ValueError(f"email: got {text!r}, {wanted}")
    if not _LOCAL.fullmatch(local) or len(local) > _LONGEST_LOCAL:
        raise ValueError(
            f"email: got {local!r} before the @, wanted at most {_LONGEST_LOCAL} ASCII letters, digits and signs"
        )
    found = f"{local}@{_checked_domain('email', domain)}"
    if len(found) > _LONGEST:
        raise ValueError(f"email: got {len(found)} characters with the domain in ASCII, wanted at most {_LONGEST}")
    return found


def _checked_domain(name: str, domain: str) -> str:
    import idna

    wanted = "wanted a domain such as example.org"
    lower = domain.lower()
    if not lower.isascii() or lower.startswith("xn--") or ".xn--" in lower:
        try:
            lower = idna.encode(lower, uts46=True, std3_rules=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"{name}: got the domain {domain!r} ({error}), {wanted}") from None
    labels = lower.split(".")
    if len(labels) < 2 or len(lower) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise ValueError(f"{name}: got the domain {domain!r}, {wanted}")
    return lower


def checked_sender(sender: str) -> Address:
    """The sender in ``Name <papers@example.org>`` or ``papers@example.org``; its domain may be ``localhost``.

    Raises TypeError for no text, ValueError for anything else, control characters included.
    """
    if not isinstance(sender, str):
        raise TypeError(f"sender: got {type(sender).__name__}, wanted a string")
    wanted = "wanted one such as paperworks <papers@example.org>"
    if _UNPRINTABLE.search(sender):
        raise ValueError(f"sender: got {sender!r} with a control character in it, {wanted}")
    try:
        header: Any = SMTP.header_factory("From", sender)
    except ValueError as error:  # an encoded word that holds a line break
        raise ValueError(f"sender: got {sender!r} ({error}), {wanted}") from None
    found: tuple[Address, ...] = header.addresses if not header.defects else ()
    if len(found) != 1 or not _LOCAL.fullmatch(found[0].username):
        raise ValueError(f"sender: got {sender!r}, {wanted}")
    domain = found[0].domain.lower()
    if not _LABEL.fullmatch(domain):
        domain = _checked_domain("sender", domain)
    return Address(display_name=" ".join(found[0].display_name.split()), username=found[0].username, domain=domain)


def checked_base_url(base_url: str) -> str:
    """The address of the site, without a slash at its end. Raises TypeError, or ValueError where it is none of http."""
    if not isinstance(base_url, str):
        raise TypeError(f"base_url: got {type(base_url).__name__}, wanted a string")
    wanted = "wanted one such as https://papers.example.org"
    try:
        parts = urlsplit(base_url)
    except ValueError as error:
        raise ValueError(f"base_url: got {base_url!r} ({error}), {wanted}") from None
    plain = base_url.isascii() and base_url.isprintable() and not re.search(r"[\s<>\"]", base_url)
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"base_url: got {base_url!r}, {wanted}")
    return base_url.rstrip("/")
