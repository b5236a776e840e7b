"""Forms: subscribing from the first click to the last, votes, preferences, the owner; only our own forms are taken."""

from __future__ import annotations

import re
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from web.web_site import NOW, TOKEN, Reader, make_app

ADDRESS = "ada@example.org"
ALIEN = {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(make_app(tmp_path))


def site(reader: Reader) -> Any:
    return reader.app.state.site  # type: ignore[attr-defined]


def outbox(reader: Reader) -> list[EmailMessage]:
    found: list[EmailMessage] = site(reader).settings.transport
    return found


def confirm_path(reader: Reader) -> str:
    body = outbox(reader)[-1].get_body(("plain",))
    assert body is not None
    found = re.search(r"http://testserver(/confirm/[\w-]+)", body.get_content())
    assert found
    return found[1]


def subscribed(reader: Reader) -> Any:
    assert reader.fill_in("/subscribe", {"email": ADDRESS}).status_code == 200
    assert reader.fill_in(confirm_path(reader), {}).status_code == 200
    return site(reader).subscriptions.active()[0]


def test_the_whole_way_of_a_subscription(reader: Reader) -> None:
    answer = reader.fill_in("/subscribe", {"email": ADDRESS})
    assert "Look into your mail" in answer.text
    assert [message["To"] for message in outbox(reader)] == [ADDRESS]
    path = confirm_path(reader)
    # Programs that follow links do not confirm.
    for _ in range(2):
        assert "Confirm your subscription" in reader.page(path)
    assert site(reader).subscriptions.active() == []
    assert ADDRESS in reader.fill_in(path, {}).text
    subscriber = site(reader).subscriptions.active()[0]
    assert reader.fill_in(path, {}).status_code == 422  # a token serves once
    leave = f"/u/{subscriber.unsubscribe_token}"
    reader.page(leave)
    assert site(reader).subscriptions.active() == [subscriber]
    # RFC 8058: a mail program has no page, no cookie and no token of a form.
    answer = Reader(reader.app).post(leave, data={"List-Unsubscribe": "One-Click"})
    assert answer.status_code == 200
    assert site(reader).subscriptions.active() == []
    assert Reader(reader.app).post(leave).status_code == 200
    assert Reader(reader.app).post("/u/forged").status_code == 404


def test_the_answer_tells_nothing_of_an_address(reader: Reader) -> None:
    first = reader.fill_in("/subscribe", {"email": ADDRESS})
    assert reader.fill_in(confirm_path(reader), {}).status_code == 200
    again = reader.fill_in("/subscribe", {"email": ADDRESS})
    site(reader).subscriptions.suppress("gone@example.org", "bounced")
    gone = reader.fill_in("/subscribe", {"email": "gone@example.org"})
    assert first.text == again.text == gone.text
    assert len(outbox(reader)) == 1


@pytest.mark.parametrize("email", ["", "nobody", "a@b\r\nBcc: c@example.org", "a@example.org, b@example.org", "@"])
def test_a_malformed_address_is_refused_where_it_was_typed(reader: Reader, email: str) -> None:
    answer = reader.fill_in("/subscribe", {"email": email})
    assert answer.status_code == 422
    assert 'aria-invalid="true"' in answer.text
    assert outbox(reader) == []


def test_a_mail_server_that_is_down_breaks_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Down:
        def send(self, message: EmailMessage) -> None:
            raise ConnectionRefusedError("nobody there")

    reader = Reader(make_app(tmp_path, transport=Down()))
    assert reader.fill_in("/subscribe", {"email": ADDRESS}).status_code == 200
    assert "could not be sent" in caplog.text
    assert ADDRESS not in caplog.text
    without = Reader(make_app(tmp_path, transport=None))
    assert "without a mail server" in without.page("/subscribe")


def test_preferences_are_kept_and_checked(reader: Reader) -> None:
    subscriber = subscribed(reader)
    path = f"/preferences/{subscriber.unsubscribe_token}"
    wanted = {
        "frequency": "weekly", "queries": "sparse layers\r\n\r\nspiking <b>", "areas": ["activations", "swin"],
        "minimum_score": "2.5", "timezone": "Europe/Berlin", "hour": "7", "count": "5",
    }  # fmt: skip
    answer = reader.fill_in(path, wanted)
    assert "Kept" in answer.text
    kept = site(reader).subscriptions.active()[0].preferences
    assert (kept.frequency, kept.hour, kept.timezone, kept.count) == ("weekly", 7, "Europe/Berlin", 5)
    assert (kept.queries, kept.areas) == (["sparse layers", "spiking <b>"], ["activations", "swin"])
    assert "spiking &lt;b&gt;" in reader.page(path)
    for wrong in ({"hour": "25"}, {"timezone": "Mars/Olympus"}, {"count": "many"}, {"frequency": "hourly"}):
        answer = reader.fill_in(path, {**wanted, **wrong})
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
        assert "spiking &lt;b&gt;" in answer.text
    answer = reader.fill_in(
        path, {**wanted, "queries": "typed just now", "areas": "activations", "count": "99", "hour": "3"}
    )
    assert ">typed just now</textarea>" in answer.text, "what was typed is not lost"
    assert 'value="99"' in answer.text
    assert '<option value="3" selected>' in answer.text
    assert re.search(r'value="activations" checked', answer.text)
    assert site(reader).subscriptions.active()[0].preferences == kept
    assert reader.get("/preferences/forged").status_code == 404


def test_addresses_with_a_token_are_nobody_elses(reader: Reader) -> None:
    subscriber = subscribed(reader)
    for path in (f"/preferences/{subscriber.unsubscribe_token}", f"/u/{subscriber.unsubscribe_token}", "/confirm/x"):
        headers = reader.get(path).headers
        assert headers["cache-control"] == "private, no-store"
        assert headers["x-robots-tag"] == "noindex"
        assert headers["referrer-policy"] == "same-origin"


def test_a_vote_counts_once_a_reader(reader: Reader) -> None:
    path = "/paper/2604.00002"
    before = reader.get(f"/api{path}").json()["entry"]["votes"]
    answer = reader.fill_in(path, {}, f"{path}/vote")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{path}?voted=now")
    assert "Your vote is counted" in reader.page(answer.headers["location"])
    again = reader.fill_in(path, {}, f"{path}/vote")
    assert again.headers["location"] == f"{path}?voted=before"
    other = Reader(reader.app)
    assert other.fill_in(path, {}, f"{path}/vote").headers["location"] == f"{path}?voted=now"
    assert reader.get(f"/api{path}").json()["entry"]["votes"] == before + 2
    people = [person for kind, person, _ in site(reader).store.history("2604.00002") if kind == "vote"]
    assert len(set(people)) == 2
    assert not set(people) & set(reader.cookies.values())


def test_a_vote_for_what_is_not_there(reader: Reader) -> None:
    token = re.search(r'name="csrf" value="(\w+)"', reader.page("/subscribe"))
    assert token
    assert reader.post("/paper/9999.99999/vote", data={"csrf": token[1]}).status_code == 404


FORMS = ["/subscribe", "/confirm/x", "/paper/2604.00002/vote", "/owner", "/preferences/x", "/runs", "/runs/x/stop"]


@pytest.mark.parametrize("path", FORMS)
def test_only_our_own_forms_are_taken(reader: Reader, path: str) -> None:
    page = reader.page("/subscribe")
    token = re.search(r'name="csrf" value="(\w+)"', page)
    assert token
    right = {"csrf": token[1], "email": ADDRESS}
    stranger = Reader(reader.app)
    stranger.page("/subscribe")
    for client, data, headers in (
        (reader, {"email": ADDRESS}, {}),
        (reader, {**right, "csrf": "0" * 64}, {}),
        (reader, {**right, "csrf": ["a", "b"]}, {}),
        (reader, right, ALIEN),
        (reader, right, {"origin": "null"}),
        (reader, right, {"sec-fetch-site": "same-site"}),
        (stranger, right, {}),
        (Reader(reader.app), right, {}),
    ):
        answer = client.post(path, data=data, headers=headers)
        assert answer.status_code == 403, (data, headers)
    assert reader.post(path, json=right).status_code == 415
    assert outbox(reader) == []


def test_a_form_may_not_hold_a_file(reader: Reader) -> None:
    token = re.search(r'name="csrf" value="(\w+)"', reader.page("/subscribe"))
    assert token
    files = {"email": ("a.txt", b"ada@example.org")}
    assert reader.post("/subscribe", data={"csrf": token[1]}, files=files).status_code == 400


def test_the_owner_signs_in_and_out(reader: Reader) -> None:
    assert reader.get("/runs").status_code == 401
    assert reader.fill_in("/owner", {"token": "guess"}).status_code == 403
    assert "Run its claims" not in reader.page("/paper/2210.11672")
    reader.sign_in()
    assert "Run its claims" in reader.page("/runs")
    assert "Run its claims" in reader.page("/paper/2210.11672")
    assert "Run its claims" not in Reader(reader.app).page("/paper/2210.11672")
    preview = reader.get("/digest/preview?area=activations")
    assert preview.status_code == 200
    assert "sandbox" in preview.headers["content-security-policy"]
    assert "script-src" not in preview.headers["content-security-policy"]
    assert reader.get("/digest/preview?part=text").headers["content-type"].startswith("text/plain")
    reader.fill_in("/owner", {"action": "leave"})
    assert reader.get("/runs").status_code == 401


def test_a_session_ends_by_itself_and_with_the_token(tmp_path: Path) -> None:
    moment = [NOW]
    reader = Reader(make_app(tmp_path, now=lambda: moment[0]))
    reader.sign_in()
    assert reader.get("/runs").status_code == 200
    session = reader.cookies["owner"]
    other = Reader(make_app(tmp_path, owner_token="another"), cookies={"owner": session})
    assert other.get("/runs").status_code == 401
    moment[0] = NOW.replace(day=NOW.day + 1)
    assert reader.get("/runs").status_code == 401
    forged = Reader(reader.app, cookies={"owner": f"99999999999.{session.partition('.')[2]}"})
    assert forged.get("/runs").status_code == 401


def test_runs_are_off_where_they_are_not_allowed(tmp_path: Path) -> None:
    public = Reader(make_app(tmp_path, host="0.0.0.0", hosts=("testserver",)))
    public.sign_in()
    assert "cannot be started" in public.page("/runs")
    assert "Run its claims" not in public.page("/paper/2210.11672")
    token = re.search(r'name="csrf" value="(\w+)"', public.page("/subscribe"))
    assert token
    assert public.post("/runs", data={"csrf": token[1], "paper": "ash"}).status_code == 403
    nobody = Reader(make_app(tmp_path, owner_token=None))
    assert [nobody.get(path).status_code for path in ("/owner", "/runs", "/digest/preview")] == [404] * 3


def test_a_run_is_started_watched_and_stopped(reader: Reader) -> None:
    reader.sign_in()
    wrong = reader.fill_in("/runs", {"paper": "nothing", "tier": "smoke"})
    assert wrong.status_code == 422
    assert reader.fill_in("/runs", {"paper": "crrelu", "tier": "huge"}).status_code == 422
    assert reader.fill_in("/runs", {"paper": "crrelu", "tier": "smoke", "claims": "none-such"}).status_code == 422
    fields = {"paper": "crrelu", "tier": "smoke", "claims": "crrelu-is-eafo-of-relu"}
    started = reader.fill_in("/runs", fields)
    assert started.status_code == 303
    path = started.headers["location"]
    assert "crrelu at tier smoke" in reader.page(path)
    assert reader.fill_in(path, {}, f"{path}/stop").status_code == 303
    assert path in reader.page("/runs")
    assert reader.get("/runs/none").status_code == 404
    site(reader).runs.close()
    assert site(reader).runs.get(path.rpartition("/")[2]).state in ("stopped", "done")


def test_the_owners_token_is_never_shown(reader: Reader) -> None:
    assert TOKEN not in repr(site(reader).settings)
    assert site(reader).settings.secret not in repr(site(reader).settings)
