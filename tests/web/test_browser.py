"""The site in Chromium: what a reader and the owner do, by mouse and by keyboard, with scripts and without."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import fake_papers
import pytest
import uvicorn
from feed.mail_server import MailServer, mail_server
from lab.report_sample import sample_papers
from web.web_site import NOW, TOKEN, fill

from paperworks.feed.mail import SmtpTransport
from paperworks.lab import registry
from paperworks.web import Settings, create_app

SIZES = {"desktop": (1440, 900), "phone": (360, 780)}
PAGES = (
    "/", "/papers/2026-04-24", "/week/2026-W17", "/month/2026-04", "/trending", "/search?q=activation", "/areas",
    "/area/activations", "/paper/2210.11672", "/paper/2604.00001", "/how", "/feeds", "/subscribe", "/owner", "/nowhere",
)  # fmt: skip
ALIKE = ("/papers/2026-04-24", "/month/2026-04")
"""Of the same parts as the front page and the week: looked at, and not searched for faults that those would have."""


@dataclass
class Place:
    """A running site, its mail server, and where it is."""

    url: str
    mail: MailServer
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path = tmp_path_factory.mktemp("site") / "site.sqlite"
    fill(path)
    papers = [*sample_papers(), fake_papers.paper_with_claims()]
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with ExitStack() as stack:
        mail = stack.enter_context(mail_server())
        stack.enter_context(patch.object(registry, "papers", lambda area=None: iter(papers)))
        stack.enter_context(patch.object(registry, "catalogue", lambda: papers))
        stack.enter_context(patch.object(registry, "find", {paper.id: paper for paper in papers}.__getitem__))
        settings = Settings(
            store=path,
            base_url=url,
            secret="of the tests",
            owner_token=TOKEN,
            transport=SmtpTransport("localhost", mail.port, context=mail.context()),
            now=lambda: NOW,
        )
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield Place(url, mail)
        server.should_exit = True
        thread.join(30)


def _tab(browser: Any, place: Place, size: str = "desktop", **options: Any) -> Any:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, base_url=place.url, **options)
    tab = context.new_page()
    place.asked.clear()
    place.said.clear()
    tab.on("request", lambda request: place.asked.append(request.url))
    tab.on("console", lambda message: place.said.append(message.text))
    tab.on("pageerror", lambda error: place.said.append(str(error)))
    return tab


@pytest.fixture
def tab(browser: Any, place: Place) -> Iterator[Any]:
    made = _tab(browser, place)
    yield made
    made.context.close()


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_every_page_is_accessible_fits_and_asks_nobody_else(browser: Any, place: Place, size: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab = _tab(browser, place, size, color_scheme=scheme)
    for path in PAGES:
        place.said.clear()
        tab.goto(path)
        width = tab.evaluate("document.documentElement.clientWidth")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, path
        found = Axe().run(tab).response["violations"] if path not in ALIKE else []
        assert not found, (path, [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found])
        refusals = [text for text in place.said if "404" not in text or path != "/nowhere"]
        assert not refusals, (path, refusals)
    assert all(address.startswith((place.url, "data:")) for address in place.asked)
    tab.context.close()


def test_browse_from_the_front_page_to_a_claim(tab: Any) -> None:
    tab.goto("/")
    tab.get_by_role("link", name="Stochastic Adaptive Activation Function").first.click()
    assert tab.url.endswith("/paper/2210.11672")
    assert tab.get_by_role("heading", level=1).inner_text() == "Stochastic Adaptive Activation Function"
    table = tab.get_by_role("table", name=re.compile("Claims of"))
    assert table.get_by_text("fails").count() or table.get_by_text("holds").count()
    tab.get_by_role("link", name="activations").first.click()
    assert "/area/activations" in tab.url


def test_the_keyboard_goes_through_a_listing(tab: Any) -> None:
    tab.goto("/papers/2026-04-24")
    tab.keyboard.press("j")
    first = tab.evaluate("document.activeElement.href")
    tab.keyboard.press("j")
    second = tab.evaluate("document.activeElement.href")
    assert first != second
    tab.keyboard.press("k")
    assert tab.evaluate("document.activeElement.href") == first
    tab.keyboard.press("o")
    tab.wait_for_url(first)
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.type") == "search"


def test_search_as_one_types_and_with_filters(tab: Any) -> None:
    tab.goto("/search")
    tab.locator("main input[name=q]").fill("percentile of a feature map")
    result = tab.locator("#results").get_by_role("link", name="Stochastic Adaptive Activation Function")
    result.first.wait_for()
    assert tab.locator("#results mark").count()
    tab.get_by_label("Area").select_option("activations")
    tab.get_by_role("button", name="Search").click()
    tab.wait_for_url(re.compile("area=activations"))
    assert result.first.is_visible()
    tab.goto("/search?q=%22%22%22+OR+NEAR%28+--+%3Cscript%3E")
    assert tab.get_by_role("heading", level=1).count()


def test_every_step_works_without_scripts(browser: Any, place: Place) -> None:
    tab = _tab(browser, place, java_script_enabled=False)
    tab.goto("/")
    tab.locator("#find").fill("activation")
    tab.locator("#find").press("Enter")
    tab.wait_for_url(re.compile("/search"))
    assert tab.get_by_role("link", name="Stochastic Adaptive Activation Function").count()
    tab.goto("/paper/2604.00002")
    tab.get_by_role("button", name=re.compile("Vote")).click()
    assert tab.get_by_role("button", name=re.compile("1")).count() or tab.get_by_text("1 vote").count()
    tab.context.close()


def _message(place: Place, number: int) -> Any:
    deadline = time.monotonic() + 30
    while len(place.mail.received) <= number and time.monotonic() < deadline:
        time.sleep(0.05)
    return place.mail.received[number]


def test_subscribe_confirm_choose_and_unsubscribe(tab: Any, place: Place) -> None:
    tab.goto("/subscribe")
    tab.get_by_label("Your address").fill("Reader@Example.org")
    tab.get_by_role("button", name="Subscribe").click()
    assert "Look into your mail" in tab.get_by_role("heading", level=1).inner_text()
    received = _message(place, 0)
    assert received.encrypted
    assert [target.lower() for target in received.targets] == ["reader@example.org"]
    text = received.message.get_body(("plain",)).get_content()
    [link] = set(re.findall(rf"{re.escape(place.url)}/confirm/\S+", text))
    tab.goto(link)
    tab.goto(link)  # a scanner that looks at the link first uses nothing up
    tab.get_by_role("button", name="Confirm").click()
    assert tab.get_by_role("heading", level=1).inner_text() == "You are subscribed"
    tab.get_by_role("link", name="Choose what it holds").click()
    tab.get_by_label("Searches, one a line").fill("activation functions")
    tab.get_by_role("button", name="Keep").click()
    assert tab.get_by_role("status").inner_text().startswith("Kept")
    tab.get_by_role("link", name="Unsubscribe").click()
    tab.get_by_role("button", name="Unsubscribe").click()
    assert tab.get_by_role("heading", level=1).inner_text() == "You are unsubscribed"
    answer = tab.goto(link)
    tab.get_by_role("button", name="Confirm").click()
    assert answer is not None
    assert "You are subscribed" not in tab.content()


def test_the_owner_runs_a_paper_and_watches(tab: Any, place: Place) -> None:
    tab.goto("/runs")
    assert "Run its claims" not in tab.content()
    tab.goto("/owner")
    tab.get_by_label(re.compile("oken")).fill(TOKEN)
    tab.get_by_role("button", name="Sign in").click()
    tab.goto("/runs")
    tab.get_by_label("Paper", exact=True).select_option("fake")
    tab.get_by_role("button", name="Run its claims").click()
    tab.wait_for_url(re.compile(r"/runs/\w+"))
    tab.locator('[data-field="state"]', has_text="done").wait_for(timeout=120_000)
    verdicts = tab.locator('[data-field="verdicts"]')
    assert verdicts.get_by_text("seven-is-seven").count() or verdicts.locator("li").count() >= 2
    assert verdicts.locator(".badge.holds").count() >= 1
    tab.reload()
    assert tab.locator('[data-field="state"]').inner_text() == "done"


def test_colours_follow_the_reader(browser: Any, place: Place) -> None:
    tab = _tab(browser, place, color_scheme="light")
    tab.goto("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    for _ in range(3):
        tab.locator("button.theme").click()
        if tab.evaluate(ground) != light:
            break
    dark = tab.evaluate(ground)
    assert dark != light
    tab.reload()
    assert tab.evaluate(ground) == dark
    assert not place.said
    tab.context.close()
