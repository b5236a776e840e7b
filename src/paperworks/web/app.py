"""The application: the pages, the JSON under ``/api``, and the layers around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from paperworks import __version__
from paperworks.web import api, forms, owner_pages, pages
from paperworks.web.assets import serve_asset
from paperworks.web.cache import PageCache
from paperworks.web.errors import add_handlers
from paperworks.web.security import Guard, Tokens
from paperworks.web.settings import Settings
from paperworks.web.state import Site


class Application(FastAPI):
    """The pages over one `Site`, at ``state.site``, inside the layers that guard and keep them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            title="paperworks",
            version=__version__,
            description="Daily Papers that run: what the pages show, as JSON.",
            lifespan=_lifespan,
            openapi_url="/api/openapi.json",
            # Their pages load scripts from elsewhere.
            docs_url=None,
            redoc_url=None,
        )
        self.state.site = Site(settings)
        self.state.tokens = Tokens(settings)
        self.cache = PageCache(super().__call__, self.state.site, self.state.tokens)
        self.guard = Guard(self.cache, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self.guard(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    assert isinstance(app, Application)
    try:
        yield
    finally:
        app.cache.fresh.close()
        await anyio.to_thread.run_sync(app.state.site.close)


def create_app(settings: Settings) -> Application:
    """The site as an ASGI application. The store is opened, and the cards put into it, before this returns.

    Raises ValueError, StoreError (an OSError) or ImportError where the store cannot be opened.
    """
    app = Application(settings)
    for router in (pages.router, forms.router, owner_pages.router):
        app.include_router(router, include_in_schema=False)
    app.include_router(api.router)
    app.router.routes.append(Route("/static/{name}", serve_asset, methods=["GET"]))
    add_handlers(app)
    return app
