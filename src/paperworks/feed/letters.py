"""Messages as programs of mail want them: headers that hold what they say, text beside HTML, links that are whole."""

from __future__ import annotations

import hashlib
import re
import textwrap
from datetime import UTC, datetime
from email.header import Header
from email.headerregistry import Address, BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.policy import EmailPolicy, Policy
from email.utils import format_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import jinja2

from paperworks.feed.addresses import checked_address, checked_base_url, checked_sender, one_line
from paperworks.feed.ranking import check_aware
from paperworks.lab.records import now as current_time
from paperworks.lab.report.wording import plural

__all__ = ["POLICY", "confirmation_mail", "message", "subscription_headers"]

LONGEST_LINE = 998
"""Characters in a line of a header, by RFC 5322."""


class _Literal(UnstructuredHeader, BaseHeader):
    """A header that is what it was set to: what looks like an encoded word (``=?utf-8?q?...?=``) is not decoded.

    The library decodes it, line breaks included, and Python before 3.11.10 then writes them: a title could add headers.
    """

    max_count = 1

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        """Called by the registry with the value that was set or read."""
        kwds["parse_tree"], kwds["decoded"] = cls.value_parser(""), value


class Words(_Literal):
    """A header of text, encoded where it is not plain ASCII or looks encoded (RFC 2047), folded at 78 characters."""

    def fold(self, *, policy: Policy) -> str:
        """The header as its lines."""
        plain = self.isascii() and self.isprintable() and "=?" not in self
        text = Header(str(self), "us-ascii" if plain else "utf-8", 78 if plain else 75, self.name)
        return f"{self.name}: {text.encode(splitchars=' ', linesep=policy.linesep)}{policy.linesep}"


class Whole(_Literal):
    """A header of addresses in angle brackets, which are never encoded, and broken only between them (RFC 2369)."""

    def fold(self, *, policy: Policy) -> str:
        """The header as its lines."""
        parts = str(self).split(", ")
        if any(len(part) > LONGEST_LINE - len(self.name) - 3 for part in parts):
            raise ValueError(f"{self.name}: got an address of {max(map(len, parts))} characters, too long for a line")
        return f"{self.name}: " + f",{policy.linesep} ".join(parts) + policy.linesep


class _Checked(EmailPolicy):
    """Refuses to write a header of which a line would be read as another header."""

    def fold(self, name: str, value: str) -> str:
        """The header as its lines."""
        return _checked(name, super().fold(name, value))

    def fold_binary(self, name: str, value: str) -> bytes:
        """The header as its lines."""
        found = super().fold_binary(name, value)
        _checked(name, found.decode("ascii", "surrogateescape"))
        return found


def _checked(name: str, folded: str) -> str:
    if re.search(r"\r(?!\n)|\n(?![ \t])", folded.removesuffix("\n").removesuffix("\r")):
        raise ValueError(f"{name}: got a line break in it")
    return folded


def _registry() -> HeaderRegistry:
    registry = HeaderRegistry()
    for name in ("list-id", "list-unsubscribe", "message-id"):
        registry.map_to_type(name, Whole)
    registry.map_to_type("subject", Words)
    return registry


POLICY = _Checked(header_factory=_registry(), linesep="\r\n")
"""Refuses line breaks in a header, folds at 78 characters, and leaves addresses in angle brackets whole."""


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The Jinja2 environment of the mails: HTML is escaped, text is not, an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("paperworks.feed", "templates"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"plural": plural, "wrapped": wrapped}
    return made


def wrapped(text: str, indent: str = "") -> str:
    """`text` in lines of at most 76 characters; a word that is longer, such as an address, stays whole."""
    lines = textwrap.wrap(text, 76, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
                          break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def message(
    to: str, subject: str, template: str, *, sender: str, now: datetime, key: str, **facts: Any
) -> EmailMessage:
    """A message of the templates ``NAME.txt.j2`` and ``NAME.html.j2``, filled with `facts`.

    Args:
        to: address, checked here.
        subject: put on one line.
        template: NAME.
        sender: ``Name <papers@example.org>``.
        now: its date, timezone-aware.
        key: what makes the Message-ID; equal keys make equal ids.

    Raises ValueError for a malformed address or sender or a naive time.
    """
    check_aware("now", now)
    source = checked_sender(sender)
    found = EmailMessage(policy=POLICY)
    found["From"] = source
    found["To"] = Address(addr_spec=checked_address(to))
    found["Subject"] = one_line(subject)
    found["Date"] = format_datetime(now.astimezone(UTC))
    found["Message-ID"] = f"<{template}.{hashlib.sha256(key.encode()).hexdigest()[:32]}@{source.domain}>"
    found["Auto-Submitted"] = "auto-generated"
    facts = {**facts, "subject": one_line(subject)}
    text, html = (environment().get_template(f"{template}.{kind}.j2").render(facts) for kind in ("txt", "html"))
    # quoted-printable: lines stay short and ASCII on every way, whatever the server announces
    found.set_content(text, cte="quoted-printable")
    found.add_alternative(html, subtype="html", cte="quoted-printable")
    return found


def subscription_headers(mail: EmailMessage, *, sender: str, base_url: str, unsubscribe_token: str) -> None:
    """Add what a mail of a list has to say: the list, and how to leave it with one click (RFC 2369, 2919, 8058)."""
    source = checked_sender(sender)
    name = one_line(source.display_name).encode("ascii", "ignore").decode().replace("<", "").strip() or "paperworks"
    mail["List-Id"] = f"{name} <digest.{source.username.lower()}.{source.domain}>"
    page = f"{checked_base_url(base_url)}/u/{quote(unsubscribe_token, safe='')}"
    letter = f"mailto:{quote(source.addr_spec, safe='@')}?subject=unsubscribe%20{quote(unsubscribe_token, safe='')}"
    mail["List-Unsubscribe"] = f"<{page}>, <{letter}>"
    mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    mail["Precedence"] = "bulk"


def confirmation_mail(
    email: str, token: str, *, base_url: str, sender: str, now: datetime | None = None
) -> EmailMessage:
    """The mail that asks whoever has an address whether they want the digest; its link is ``/confirm/TOKEN``.

    Raises ValueError for a malformed address, `base_url` or `sender`.
    """
    site = checked_base_url(base_url)
    link = f"{site}/confirm/{quote(token, safe='')}"
    moment = current_time() if now is None else now
    host = site.partition("://")[2]
    return message(
        email, f"Confirm your subscription to the digest of {host}", "confirmation", sender=sender, now=moment,
        key=token, link=link, site=site, host=host, email=checked_address(email),
    )  # fmt: skip
