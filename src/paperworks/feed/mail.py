"""Sending a message by SMTP, with an account of what is known when it fails."""

from __future__ import annotations

import re
import smtplib
import ssl
import threading
import time
from collections.abc import Callable
from email.message import EmailMessage
from types import TracebackType
from urllib.parse import parse_qsl, unquote, urlsplit

from paperworks.feed.addresses import one_line
from paperworks.feed.letters import confirmation_mail

__all__ = ["Refused", "SmtpTransport", "Unavailable", "Uncertain", "confirmation_mail"]


class Unavailable(OSError):
    """Nothing was sent, and the fault is not the message's: the server is away, or does not let us in."""


class Uncertain(OSError):
    """The whole message was sent and the server's answer never came: it may have been delivered."""


class Refused(OSError):
    """The server answered that it does not take this message.

    Attributes:
        code: of the answer.
        permanent: 5xx; otherwise it may be taken later.
        mailbox: the recipient was refused, not the content.
    """

    def __init__(self, code: int, answer: str, *, mailbox: bool) -> None:
        super().__init__(f"{code} {answer}")
        self.code, self.permanent, self.mailbox = code, code >= 500, mailbox


class SmtpTransport:
    """Sends messages through one SMTP server, over one connection that is opened when needed. Threads may share it.

    Args:
        host, port: of the server; 587 takes STARTTLS, 465 TLS from the start.
        starttls: the connection is encrypted and the certificate checked before anything is said; a server that does
            not offer it is not used. False sends in the clear, for a server on this machine.
        username, password: for the server; never sent in the clear.
        implicit_tls: TLS from the first byte, instead of STARTTLS.
        per_minute: messages at most.
        context: of TLS; by default the system's authorities are believed.
        timeout: seconds that an answer may take.
        clock, sleep: seconds, for the rate.

    Raises ValueError for a username without TLS or without a password, or a rate or timeout not above 0.
    """

    def __init__(
        self,
        host: str,
        port: int = 587,
        *,
        starttls: bool = True,
        username: str | None = None,
        password: str | None = None,
        implicit_tls: bool = False,
        per_minute: float = 60,
        context: ssl.SSLContext | None = None,
        timeout: float = 30,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not host or not re.fullmatch(r"[\w.:-]+", host, re.ASCII):
            raise ValueError(f"host: got {host!r}, wanted the name or address of a server")
        if not 0 < port < 65536:
            raise ValueError(f"port: got {port}, wanted 1 to 65535")
        if (username is None) != (password is None):
            raise ValueError("username, password: got one of them, wanted both or neither")
        if username is not None and not (starttls or implicit_tls):
            raise ValueError("starttls: got False with a username, which is never sent in the clear")
        if not per_minute > 0 or not timeout > 0:
            raise ValueError(f"per_minute, timeout: got {per_minute} and {timeout}, wanted numbers above 0")
        self.host, self.port, self.starttls, self.implicit_tls = host, port, starttls, implicit_tls
        self.username, self._password = username, password
        self.per_minute, self.timeout = per_minute, timeout
        self._context = context or ssl.create_default_context()
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._client: smtplib.SMTP | None = None
        self._free_at = float("-inf")

    @classmethod
    def from_url(cls, url: str) -> SmtpTransport:
        """The transport of ``smtp://user:password@host:587?starttls=require`` or ``smtps://...`` (TLS from the start).

        ``starttls`` is ``require`` or ``never``; ``per_minute`` and ``timeout`` are numbers. User and password are
        percent-encoded. Raises ValueError, without the password in it.
        """
        wanted = "wanted one such as smtp://user:password@mail.example.org:587?starttls=require"
        try:
            parts = urlsplit(url)
            port = parts.port
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
            per_minute, timeout = float(options.pop("per_minute", 60)), float(options.pop("timeout", 30))
        except ValueError:
            raise ValueError(f"url: not understood, {wanted}") from None
        starttls = options.pop("starttls", "require")
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path.strip("/") or options:
            raise ValueError(f"url: not understood, {wanted}")
        if starttls not in ("require", "never"):
            raise ValueError(f"url: got starttls={starttls}, wanted require or never")
        implicit = parts.scheme == "smtps"
        return cls(
            parts.hostname,
            port or (465 if implicit else 587),
            starttls=starttls == "require" and not implicit,
            implicit_tls=implicit,
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            per_minute=per_minute,
            timeout=timeout,
        )

    def __repr__(self) -> str:
        tls = "TLS" if self.implicit_tls else "STARTTLS" if self.starttls else "no TLS"
        return f"SmtpTransport({self.host!r}, {self.port}, {tls})"

    def __enter__(self) -> SmtpTransport:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, message: EmailMessage) -> None:
        """Send a message from its From to its To. Waits where the rate wants it.

        Raises:
            Refused: the server did not take it.
            Unavailable: it was not sent, for reasons of the server or the way to it.
            Uncertain: it was sent, and whether it was taken is not known.
            ValueError: the message has no one sender and one recipient.
        """
        sources, targets = ([a.addr_spec for a in message[name].addresses] if message[name] else []
                            for name in ("From", "To"))  # fmt: skip
        if len(sources) != 1 or len(targets) != 1:
            raise ValueError(f"message: got {len(sources)} senders and {len(targets)} recipients, wanted one of each")
        data = re.sub(rb"(?m)^\.", b"..", message.as_bytes()) + b".\r\n"
        with self._lock:
            self._wait()
            try:
                self._deliver(sources[0], targets[0], data)
            except Refused:
                self._reset()
                raise
            except BaseException:
                self._drop()
                raise

    def close(self) -> None:
        """End the connection; closing twice is no error, and sending opens another."""
        with self._lock:
            client, self._client = self._client, None
            if client is not None:
                try:
                    client.quit()
                except (smtplib.SMTPException, OSError):
                    client.close()

    def _wait(self) -> None:
        now = self._clock()
        if self._free_at > now:
            self._sleep(self._free_at - now)
        self._free_at = max(now, self._free_at) + 60 / self.per_minute

    def _deliver(self, source: str, target: str, data: bytes) -> None:
        complete = False
        try:
            client = self._connected()
            code, answer = client.mail(source)
            if code != 250:  # the server does not want us, whoever the recipient is
                raise Unavailable(f"{self.host}: refuses the sender {source}: {code} {_text(answer)}")
            _accepted(*client.rcpt(target), mailbox=True)
            code, answer = client.docmd("DATA")
            if code != 354:
                _accepted(code, answer)
                raise Unavailable(f"{self.host}: answers DATA with {code} {_text(answer)}")
            client.send(data)
            complete = True
            _accepted(*client.getreply())
        except (Refused, Unavailable):
            raise
        except (smtplib.SMTPException, OSError, UnicodeError) as error:
            if complete:
                raise Uncertain(f"{self.host}: no answer to the message: {error}") from error
            raise Unavailable(f"{self.host}: {error}") from error

    def _connected(self) -> smtplib.SMTP:
        """The connection that is open, if its server is still there, else a new one."""
        if self._client is not None:
            try:
                if self._client.noop()[0] == 250:
                    return self._client
            except (smtplib.SMTPException, OSError):
                pass
            self._drop()
        client: smtplib.SMTP
        if self.implicit_tls:
            client = smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout, context=self._context)
        else:
            client = smtplib.SMTP(self.host, self.port, timeout=self.timeout)
        self._client = client
        if self.starttls and not self.implicit_tls:
            client.starttls(context=self._context)
        client.ehlo_or_helo_if_needed()
        if self.username is not None and self._password is not None:
            client.login(self.username, self._password)
        return client

    def _reset(self) -> None:
        """Make the connection ready for the next message, or give it up."""
        try:
            if self._client is not None and self._client.rset()[0] != 250:
                self._drop()
        except (smtplib.SMTPException, OSError):
            self._drop()

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _accepted(code: int, answer: bytes, *, mailbox: bool = False) -> None:
    """Nothing for an answer of 2xx. Raises Refused for 4xx and 5xx, SMTPException for what is no answer."""
    if 200 <= code < 300:
        return
    text = _text(answer)
    if not 400 <= code < 600:
        raise smtplib.SMTPException(f"not understood: {code} {text}")
    # 5.7.x is a matter of policy, "relaying denied" among it: no fault of the mailbox
    raise Refused(code, text, mailbox=mailbox and not re.match(r"5\.7\.", text))


def _text(answer: bytes) -> str:
    return one_line(answer.decode("utf-8", "replace"))[:300]
