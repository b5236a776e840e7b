"""Messages and the way they are sent: headers, folding, TLS, log-in, and what is known after a failure."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.errors import MessageError
from email.message import EmailMessage
from email.utils import parsedate_to_datetime

import pytest
from feed.mail_server import MailServer, answering, mail_server
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.addresses import one_line
from paperworks.feed.letters import LONGEST_LINE, message, subscription_headers, wrapped
from paperworks.feed.mail import Refused, SmtpTransport, Unavailable, Uncertain, confirmation_mail

NOW = datetime(2026, 4, 24, 9, 30, tzinfo=UTC)
SENDER = "paperworks <papers@example.org>"
SITE = "https://papers.example.org"


def confirmation(email: str = "reader@example.org", token: str = "t0ken") -> EmailMessage:
    return confirmation_mail(email, token, base_url=SITE, sender=SENDER, now=NOW)


def sent(server: MailServer, **settings: object) -> SmtpTransport:
    return SmtpTransport(
        server.host,
        server.port,
        **{"context": server.context(), "per_minute": 60_000, **settings},  # type: ignore[arg-type]
    )


def test_the_confirmation_has_the_link_in_both_parts_and_no_list_headers() -> None:
    mail = confirmation(token="a-b_c")
    text, html = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert html is not None
    assert f"\n{SITE}/confirm/a-b_c\n" in text.get_content()
    assert f'href="{SITE}/confirm/a-b_c"' in html.get_content()
    assert mail.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-Unsubscribe"] is None
    assert parsedate_to_datetime(mail["Date"]) == NOW
    assert mail["Message-ID"].endswith("@example.org>")
    with pytest.raises(ValueError, match="now"):
        confirmation_mail("a@b.org", "t", base_url=SITE, sender=SENDER, now=datetime(2026, 4, 24))


def test_no_header_takes_a_line_break() -> None:
    for name in ("Subject", "List-Id", "List-Unsubscribe", "X-Anything"):
        mail = confirmation()
        del mail[name]
        with pytest.raises(ValueError, match="linefeed"):
            mail[name] = "a\r\nBcc: c@d.org"


@given(st.text(max_size=400))
def test_any_subject_arrives_and_adds_no_header(subject: str) -> None:
    facts = {"link": "x", "site": SITE, "host": subject, "email": "a@b.org"}
    mail = message("a@b.org", subject, "confirmation", sender=SENDER, now=NOW, key="1", **facts)
    data = mail.as_bytes()
    assert data.isascii()
    head, _, _ = data.partition(b"\r\n\r\n")
    assert all(len(line) <= 78 or b" " not in line.strip() for line in head.split(b"\r\n"))
    found = message_from_bytes(data, policy=policy.default)
    assert set(found.keys()) == set(mail.keys())
    assert found["Bcc"] is None
    assert " ".join(str(found["Subject"]).split()) == one_line(subject)
    assert not found.defects


INJECTIONS = [
    "=?utf-8?q?x=0D=0ABcc:_e@example.org?=",
    "A Study of =?utf-8?b?DQpCY2M6IGVAZXhhbXBsZS5vcmc=?= Words",
    "=?utf-8?q?x=0D=0A=0D=0Abody?=" + "y" * 90,
    "=?utf-8?q?x=0AX-Other:_1?= and =?iso-8859-1?q?caf=E9=0D?=",
]


@pytest.mark.parametrize("title", INJECTIONS)
def test_what_looks_like_an_encoded_word_is_text(title: str) -> None:
    facts = {"link": "x", "site": SITE, "host": title, "email": "a@b.org"}
    mail = message("a@b.org", title, "confirmation", sender=SENDER, now=NOW, key="1", **facts)
    found = message_from_bytes(mail.as_bytes(), policy=policy.default)
    assert set(found.keys()) == set(mail.keys())
    assert found["Subject"] == title


@pytest.mark.parametrize("value", [*INJECTIONS, "=?utf-8?q?x=0D=0A=0D=0Abody?="])
def test_no_other_header_smuggles_one_in_either(value: str) -> None:
    mail = confirmation()
    mail["X-Anything"] = value
    try:
        found = message_from_bytes(mail.as_bytes(), policy=policy.default)
    except (ValueError, MessageError):  # by us, or by a Python that checks this itself
        return
    assert set(found.keys()) == set(mail.keys())
    assert str(found.get_body(("plain",))) == str(mail.get_body(("plain",)))


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_name_of_the_sender_is_refused_or_arrives(name: str, other: str) -> None:
    try:
        mail = confirmation_mail("a@b.org", "t", base_url=SITE, sender=f"{name} <papers@example.org>{other}", now=NOW)
    except ValueError:
        return
    found = message_from_bytes(mail.as_bytes(), policy=policy.default)
    assert set(found.keys()) == set(mail.keys())
    assert [address.addr_spec for address in found["From"].addresses] == ["papers@example.org"]


@pytest.mark.parametrize("site", [SITE, "https://" + "papers." * 30 + "example.org/with/a/path"])
def test_the_list_headers_have_the_grammar_of_their_rfcs(site: str) -> None:
    mail = confirmation()
    subscription_headers(mail, sender=SENDER, base_url=site, unsubscribe_token="a" * 75)
    head = mail.as_bytes().partition(b"\r\n\r\n")[0].decode("ascii")
    lines = re.sub(r"\r\n[ \t]+", " ", head).split("\r\n")  # unfolded by RFC 5322
    header = dict(line.split(": ", 1) for line in lines)
    # RFC 8058: one header, an https URI in angle brackets first, not encoded; the other is fixed text
    assert header["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    found = re.fullmatch(r"<(https://[!-;=?-~]+)>, <(mailto:[!-;=?-~]+)>", header["List-Unsubscribe"])
    assert found is not None
    assert found[1] == f"{site}/u/{'a' * 75}"
    assert found[2] == f"mailto:papers@example.org?subject=unsubscribe%20{'a' * 75}"
    # RFC 2919: an optional phrase and a dotted name in angle brackets
    assert re.fullmatch(r"[\w .-]*<[\w-]+(\.[\w-]+)+>", header["List-Id"])
    assert header["Precedence"] == "bulk"
    assert all(len(line) <= LONGEST_LINE for line in head.split("\r\n"))


def test_an_address_too_long_for_a_header_is_refused() -> None:
    mail = confirmation()
    subscription_headers(mail, sender=SENDER, base_url=SITE + "/x" * 500, unsubscribe_token="a" * 75)
    with pytest.raises(ValueError, match=r"(?i)list-unsubscribe: got an address of"):
        mail.as_bytes()


@pytest.mark.parametrize("name", ["", "Größe", "研究", 'a "quoted" <b>', "a, b"])
def test_the_list_has_a_name_in_ascii(name: str) -> None:
    mail = confirmation()
    quoted = name.replace("\\", "").replace('"', "'")
    subscription_headers(mail, sender=f'"{quoted}" <p@example.org>', base_url=SITE, unsubscribe_token="t")
    assert re.fullmatch(r"[!-~ ]+ <digest\.p\.example\.org>", mail["List-Id"])


def test_text_is_wrapped_and_addresses_stay_whole() -> None:
    link = "https://papers.example.org/" + "x" * 90
    assert wrapped(f"{'word ' * 20}{link}", "   ").split("\n")[-1] == f"   {link}"


# sending


def test_a_message_goes_out_encrypted_with_log_in() -> None:
    with mail_server(passwords={"user@x": "p:ss w/rd%"}) as server:
        with sent(server, username="user@x", password="p:ss w/rd%") as transport:
            transport.send(confirmation())
            transport.send(confirmation("other@example.org"))
        assert [(r.source, r.targets, r.encrypted, r.user) for r in server.received] == [
            ("papers@example.org", ["reader@example.org"], True, "user@x"),
            ("papers@example.org", ["other@example.org"], True, "user@x"),
        ]
        assert server.connections == 1
        assert server.received[0].message["Subject"] == "Confirm your subscription to the digest of papers.example.org"


def test_lines_that_begin_with_a_dot_arrive() -> None:
    mail = confirmation()
    mail.clear_content()
    mail.set_content(".\n..two\n.\nend\n", cte="7bit")
    with mail_server() as server, sent(server) as transport:
        transport.send(mail)
        assert server.received[0].content == mail.as_bytes()
        assert mail.as_bytes().endswith(b"\r\n\r\n.\r\n..two\r\n.\r\nend\r\n")


def test_tls_from_the_first_byte() -> None:
    with mail_server(starttls=False, implicit_tls=True, passwords={"u": "p"}) as server:
        with sent(server, implicit_tls=True, starttls=False, username="u", password="p") as transport:
            transport.send(confirmation())
        assert [r.user for r in server.received] == ["u"]


def test_a_server_without_starttls_is_not_used() -> None:
    with mail_server(starttls=False) as server:
        with pytest.raises(Unavailable, match="STARTTLS"):
            sent(server).send(confirmation())
        assert server.received == []
        sent(server, starttls=False).send(confirmation())
        assert [r.encrypted for r in server.received] == [False]


def test_a_certificate_that_is_not_believed_ends_it() -> None:
    with mail_server() as server:
        for context in (None, ssl.create_default_context()):
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                sent(server, context=context).send(confirmation())
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):  # issued to localhost
            SmtpTransport("127.0.0.1", server.port, context=server.context()).send(confirmation())
        assert server.received == []


def test_a_wrong_password_is_told_without_it() -> None:
    with mail_server(passwords={"u": "right"}) as server:
        with pytest.raises(Unavailable, match="535") as told:
            sent(server, username="u", password="secret-wrong").send(confirmation())
        assert "secret-wrong" not in str(told.value)
        assert server.received == []


def test_nothing_secret_is_sent_or_shown_in_the_clear() -> None:
    with pytest.raises(ValueError, match="starttls: got False with a username"):
        SmtpTransport("localhost", starttls=False, username="u", password="p")
    with pytest.raises(ValueError, match="starttls"):
        SmtpTransport.from_url("smtp://u:p@localhost?starttls=never")
    transport = SmtpTransport.from_url("smtp://u%40x:s3cret@localhost:2525")
    assert "s3cret" not in repr(transport)
    assert (transport.username, transport.port, transport.starttls) == ("u@x", 2525, True)


def test_the_parts_of_an_address_of_a_server() -> None:
    found = SmtpTransport.from_url("smtp://mail.example.org")
    assert (found.host, found.port, found.starttls, found.implicit_tls) == ("mail.example.org", 587, True, False)
    found = SmtpTransport.from_url("smtps://u:p@mail.example.org?per_minute=30&timeout=5")
    assert (found.port, found.starttls, found.implicit_tls, found.per_minute, found.timeout) == (
        465,
        False,
        True,
        30,
        5,
    )
    found = SmtpTransport.from_url("smtp://localhost:25?starttls=never")
    assert (found.port, found.starttls) == (25, False)


@pytest.mark.parametrize(
    "url",
    ["", "mail.example.org", "http://u:s3cret@x", "smtp://", "smtp://u:s3cret@x:99999", "smtp://u:s3cret@x/path",
     "smtp://u:s3cret@x?starttls=maybe", "smtp://u:s3cret@x?other=1", "smtp://u:s3cret@x?per_minute=fast",
     "smtp://u:s3cret@x?per_minute=0", "smtp://u@x", "smtp://u:s3cret@x y"],
)  # fmt: skip
def test_addresses_of_servers_that_are_refused_show_no_password(url: str) -> None:
    with pytest.raises(ValueError) as told:
        SmtpTransport.from_url(url)
    assert "s3cret" not in str(told.value)


def test_what_the_server_says_of_a_recipient() -> None:
    faults = {
        "gone": "550 5.1.1 no such user",
        "full": "452 4.2.2 mailbox full",
        "policy": "554 5.7.1 relay access denied",
    }
    with mail_server(on_recipient=answering(**faults)) as server, sent(server) as transport:
        told = {}
        for name in faults:
            with pytest.raises(Refused) as error:
                transport.send(confirmation(f"{name}@example.org"))
            told[name] = (error.value.code, error.value.permanent, error.value.mailbox)
        transport.send(confirmation())
        assert told["gone"] == (550, True, True)
        assert told["full"][:2] == (452, False)
        assert told["policy"] == (554, True, False)
        assert [r.targets for r in server.received] == [["reader@example.org"]]
        assert server.connections == 1


def test_a_message_that_is_refused_is_no_fault_of_the_mailbox() -> None:
    with mail_server(on_data=answering(reader="554 looks like spam", other="451 later")) as server:
        with sent(server) as transport:
            for name, permanent in (("reader", True), ("other", False)):
                with pytest.raises(Refused) as error:
                    transport.send(confirmation(f"{name}@example.org"))
                assert (error.value.permanent, error.value.mailbox) == (permanent, False)
        assert server.received == []


def test_a_sender_that_is_refused_is_the_servers_business() -> None:
    with mail_server(on_sender=lambda server, address: "550 not you") as server:
        transport = sent(server)
        with pytest.raises(Unavailable, match="550 not you"):
            transport.send(confirmation())


@pytest.mark.parametrize("answer", [MailServer.CUT, "999 what", "150 what"])
def test_a_session_that_dies_after_the_message_leaves_it_uncertain(answer: str) -> None:
    with mail_server(on_data=answering(reader=answer)) as server, sent(server) as transport:
        with pytest.raises(Uncertain):
            transport.send(confirmation())
        transport.send(confirmation("other@example.org"))
        assert server.connections == 2


def test_a_session_that_dies_before_the_message_sends_nothing() -> None:
    with mail_server(on_recipient=answering(reader=MailServer.CUT)) as server, sent(server) as transport:
        with pytest.raises(Unavailable):
            transport.send(confirmation())
        transport.send(confirmation("other@example.org"))
        assert [r.targets for r in server.received] == [["other@example.org"]]


def test_a_connection_that_ended_meanwhile_is_made_anew() -> None:
    with mail_server() as server, sent(server) as transport:
        transport.send(confirmation())
        server.hang_up()
        transport.send(confirmation())
        assert (len(server.received), server.connections) == (2, 2)
        transport.close()
        transport.close()
        transport.send(confirmation())
        assert len(server.received) == 3


def test_no_server_there() -> None:
    with mail_server() as server:
        transport = sent(server)
    with pytest.raises(Unavailable):
        transport.send(confirmation())


def test_the_rate_is_kept() -> None:
    time = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time[0] += seconds

    with mail_server() as server, sent(server, per_minute=30, clock=lambda: time[0], sleep=sleep) as transport:
        for _ in range(3):
            transport.send(confirmation())
        assert slept == [2, 2]
        time[0] += 60
        transport.send(confirmation())
        assert slept == [2, 2]


def test_a_message_has_one_recipient() -> None:
    mail = confirmation()
    del mail["To"]
    with pytest.raises(ValueError, match="0 recipients"):
        SmtpTransport("localhost").send(mail)
    mail["To"] = "a@b.org, c@d.org"
    with pytest.raises(ValueError, match="2 recipients"):
        SmtpTransport("localhost").send(mail)
