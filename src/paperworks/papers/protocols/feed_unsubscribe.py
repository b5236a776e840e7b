"""One-click unsubscribing (RFC 8058), from the headers of a mail to the state of the subscribers."""

from __future__ import annotations

import re
import tempfile
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

from paperworks.data.synthetic_papers import synthetic_papers
from paperworks.feed import Digest, PaperRecord, Search, Store, Subscriptions

__all__ = ["header_faults", "unsubscribe_faults"]

NOW = datetime(2026, 4, 24, 18, 30, tzinfo=UTC)
SECRET = "a secret of this check, long enough"
BASE_URL = "https://papers.example"
MIME = {"urlencoded": "application/x-www-form-urlencoded", "multipart": "multipart/form-data; boundary=one"}
BODY = {
    "urlencoded": b"List-Unsubscribe=One-Click",
    "multipart": b'--one\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--one--\r\n',
}
_URI = r"<[A-Za-z][A-Za-z0-9+.-]*:[!-;=?-~]+>"  # RFC 2369: in angle brackets, without white space
_LIST = re.compile(rf"{_URI}(?:\s*,\s*{_URI})*")


def header_faults(mail: bytes) -> dict[str, int]:
    """What RFC 2369 and RFC 8058 demand of the headers and the mail as sent does not have, as counts of faults."""
    head = mail.partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n") if line[:1] not in (b" ", b"\t")]
    parsed = message_from_bytes(mail, policy=policy.SMTP)
    links, one_click = str(parsed["List-Unsubscribe"] or ""), str(parsed["List-Unsubscribe-Post"] or "")
    web = [address for address in re.findall(r"<([^>]*)>", links) if urlsplit(address).scheme == "https"]
    return {
        "List-Unsubscribe: not once": abs(names.count(b"list-unsubscribe") - 1),
        "List-Unsubscribe: grammar": int(_LIST.fullmatch(links) is None),
        "List-Unsubscribe: https links but one": abs(len(web) - 1),
        "List-Unsubscribe-Post: not once": abs(names.count(b"list-unsubscribe-post") - 1),
        "List-Unsubscribe-Post: other value": int(one_click != "List-Unsubscribe=One-Click"),
    }


def _mail(store: Store, subscriptions: Subscriptions, address: str) -> tuple[EmailMessage, str]:
    """The digest of a subscriber and the path of its one-click link."""
    [subscriber] = [one for one in subscriptions.active() if one.email == address]
    digest = Digest(store, Search(store), subscriptions, base_url=BASE_URL, sender="Papers <papers@papers.example>")
    message = digest.build(subscriber, NOW)
    assert message is not None
    link = next(one for one in re.findall(r"<([^>]*)>", str(message["List-Unsubscribe"])) if one.startswith("https:"))
    return message, urlsplit(link).path


def unsubscribe_faults() -> dict[str, int]:
    """Faults of the headers, and of what the site does to its subscribers on GET, HEAD and POST."""
    from fastapi.testclient import TestClient

    from paperworks.web import Settings, create_app

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed.sqlite"
        people = [f"reader{number}@readers.example" for number in range(6)]
        with Store(path) as store:
            day = (NOW - timedelta(days=1)).date()
            store.add([PaperRecord(**one, first_seen=day) for one in synthetic_papers(8)], NOW - timedelta(hours=20))
            subscriptions = Subscriptions(store, SECRET)
            for address in people:
                token = subscriptions.request(address, NOW - timedelta(days=2))
                assert token is not None
                subscriptions.confirm(token, NOW - timedelta(days=2))
            message, link = _mail(store, subscriptions, people[0])
            found = header_faults(message.as_bytes(policy=policy.SMTP))
            _, other = _mail(store, subscriptions, people[1])

            def active() -> set[str]:
                return {one.email for one in subscriptions.active()}

            settings = Settings(store=path, secret=SECRET, base_url=BASE_URL, catalogue=False, now=lambda: NOW)
            # No cookie, no page before it, no redirect followed: all a mail provider sends is the POST.
            with TestClient(create_app(settings), base_url=BASE_URL, follow_redirects=False) as client:
                looked = [client.get(link).status_code, client.head(link).status_code]
                found["GET or HEAD: not answered"] = sum(status != 200 for status in looked)
                found["GET or HEAD: unsubscribed"] = len(people) - len(active())
                client.cookies.clear()
                for (form, kind), one in zip(MIME.items(), (link, other), strict=True):
                    answer = client.post(one, content=BODY[form], headers={"Content-Type": kind})
                    found[f"POST, {form}: status but 2xx"] = int(not 200 <= answer.status_code < 300)
                found["POST: still subscribed"] = len({people[0], people[1]} & active())
                again = client.post(link, content=BODY["urlencoded"], headers={"Content-Type": MIME["urlencoded"]})
                found["POST again: status but 2xx"] = int(not 200 <= again.status_code < 300)
                forged = link[:-4] + ("AAAA" if not link.endswith("AAAA") else "BBBB")
                for wrong in (forged, "/u/" + "0" * 32, people[2].join(("/u/", ""))):
                    client.post(wrong, content=BODY["urlencoded"], headers={"Content-Type": MIME["urlencoded"]})
                found["others: unsubscribed"] = len(set(people[2:]) - active())
        return found
