"""The description under /api/openapi.json holds for whatever is asked: generated requests, every answer checked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.web import Settings, create_app
from paperworks.web.settings import RATES, Rate

REFUSALS = ["400", "401", "403", "404", "405", "409", "413", "414", "415", "422", "429"]
CHECKS = {"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}}
NOW = datetime(2026, 4, 25, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    url = tmp_path_factory.mktemp("openapi") / "papers.sqlite"
    with Store(url) as store:
        store.add([PaperRecord("A paper", id="2604.00001", first_seen=date(2026, 4, 24), source="daily")])
    rates = dict.fromkeys(RATES, Rate(10**6, 10**6))
    app = create_app(Settings(store=url, secret="s" * 40, owner_token="token", now=lambda: NOW, rates=rates))

    async def stays_open(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":  # the client begins and ends the application's life with each request
            await app(scope, receive, send)
            return
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})

    yield schemathesis.openapi.from_asgi("/api/openapi.json", stays_open, config=SchemathesisConfig.from_dict(CHECKS))
    app.state.site.close()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("owner", [False, True])
def test_every_answer_is_as_described(described: Any, mode: GenerationMode, owner: bool) -> None:
    headers = {"Authorization": "Bearer token"} if owner else {}
    checked = set()
    for found in described.get_all_operations():
        operation = found.ok()
        if owner and not operation.path.startswith(("/api/paper/", "/api/runs")):
            continue  # answers everyone alike
        if mode is GenerationMode.NEGATIVE and not {"parameters", "requestBody"} & set(operation.definition.raw):
            continue  # takes nothing that could be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=12, derandomize=True, database=None, deadline=None, phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def check(case: Any) -> None:
            # A date of the right form may still be the 30th of February: the pattern does not say all.
            case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

        check()
        checked.add(operation.label)
    every, taking = (6, 5) if owner else (17, 13)
    assert len(checked) == (every if mode is GenerationMode.POSITIVE else taking)
