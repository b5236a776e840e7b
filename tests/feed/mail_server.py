"""A real SMTP server on the loopback interface, with STARTTLS, log-in and the faults that a test asks for."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass
class Received:
    source: str
    targets: list[str]
    content: bytes
    encrypted: bool
    user: str | None

    @property
    def message(self) -> EmailMessage:
        found = message_from_bytes(self.content, policy=policy.default)
        assert isinstance(found, EmailMessage)
        return found


Fault = Callable[["MailServer", str], str | None]
"""Given the server and a recipient: the answer to give, or None for the usual one."""


@dataclass
class MailServer:
    """What a server received, and how it is to answer; `cut` ends the connection without an answer."""

    host: str = "localhost"
    port: int = 0
    authority: trustme.CA = field(default_factory=trustme.CA)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    on_sender: Fault = lambda server, address: None
    on_recipient: Fault = lambda server, address: None
    on_data: Fault = lambda server, address: None
    passwords: dict[str, str] = field(default_factory=dict)
    sessions: list[SMTP] = field(default_factory=list)

    CUT = "cut"

    def hang_up(self) -> None:
        """End every connection."""
        for session in self.sessions:
            if session.transport is not None:
                session.loop.call_soon_threadsafe(session.transport.abort)  # type: ignore[attr-defined]

    def context(self) -> ssl.SSLContext:
        """A client's context that believes this server."""
        made = ssl.create_default_context()
        self.authority.configure_trust(made)
        return made

    # what aiosmtpd calls

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        return self._answer(server, self.on_sender, address) or self._sender(envelope, address)

    @staticmethod
    def _sender(envelope: Envelope, address: str) -> str:
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if answer := self._answer(server, self.on_recipient, address):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        user = session.auth_data.login.decode() if isinstance(session.auth_data, LoginPassword) else None
        told = Received(str(envelope.mail_from), list(envelope.rcpt_tos), content, session.ssl is not None, user)
        answer = self.on_data(self, envelope.rcpt_tos[0])
        if answer is None or answer == self.CUT:
            self.received.append(told)
        return self._answer(server, lambda *_: answer, "") or "250 taken"

    def _answer(self, server: SMTP, fault: Fault, address: str) -> str | None:
        answer = fault(self, address)
        if answer == self.CUT:
            assert server.transport is not None
            server.transport.abort()  # type: ignore[attr-defined]
        return answer

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        known = isinstance(data, LoginPassword) and self.passwords.get(data.login.decode()) == data.password.decode()
        return AuthResult(success=known, handled=False, auth_data=data if known else None)


@contextmanager
def mail_server(*, starttls: bool = True, implicit_tls: bool = False, **settings: Any) -> Iterator[MailServer]:
    """A server that listens until the block ends."""
    state = MailServer(**settings)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    state.authority.issue_cert("localhost").configure_cert(context)

    def connection() -> SMTP:
        state.connections += 1
        session = SMTP(
            state,
            hostname="localhost",
            ident="test",
            tls_context=context if starttls else None,
            require_starttls=starttls,
            auth_required=bool(state.passwords) and not implicit_tls,
            auth_require_tls=not implicit_tls,
            authenticator=state.authenticate,
            loop=loop,
        )
        state.sessions.append(session)
        return session

    listening = socket.create_server((state.host, 0))
    state.port = listening.getsockname()[1]
    loop = asyncio.new_event_loop()
    started, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        tls = context if implicit_tls else None
        server = await loop.create_server(connection, sock=listening, ssl=tls)
        started.set()
        await ended.wait()
        server.close()
        for task in asyncio.all_tasks(loop) - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()


def answering(**answers: str) -> Fault:
    """A fault that answers as told to the recipients with these names before the @, and as usual to the others."""
    return lambda server, address: answers.get(address.partition("@")[0])
