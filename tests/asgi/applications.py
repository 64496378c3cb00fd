"""What the ASGI servers in these tests serve. ``TEST_DATA_DIR`` is where the uploads go."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import trioresume
import trioresume.asgi
from trioresume.asgi.channels import Receive, Send
from trioresume.asgi.engines import Scope

KIB = 1024


def make(**settings: str) -> trioresume.asgi.App:
    config = trioresume.Config(
        data_dir=os.environ["TEST_DATA_DIR"],
        durability="process",
        chunk_size=64 * KIB,
        **settings,  # type: ignore[arg-type]
    )
    return trioresume.asgi.App(trioresume.FileService(), config)


alone = make()
mounted = make(root_path="/up")


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


# Starlette, with the engine in its lifespan.


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    async with mounted.running():
        yield


in_starlette = Starlette(
    routes=[Mount("/up", mounted), Route("/", hello)], lifespan=_lifespan
)

# FastAPI, with nothing in its lifespan: the engine starts with the first request.

in_fastapi = FastAPI()
in_fastapi.mount("/up", mounted)


@in_fastapi.get("/")
async def _hello() -> str:
    return "hello"


# Django, which has no lifespan.


def _django() -> object:
    from tests.targets.applications.frameworks import django_asgi_app

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/up/"):
            await mounted(scope, receive, send)
        else:
            await django_asgi_app(scope, receive, send)

    return application


in_django = _django()
