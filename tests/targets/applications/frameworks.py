"""Ordinary applications, as their frameworks' tutorials would have them, with a log.

Each takes a form with one file at ``/form``, and raw content at ``/raw``; it answers with the
length and the SHA-256 of the content. ``/log`` lists both for all requests so far. None of them
knows of trioresume.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import path
from fastapi import FastAPI, UploadFile
from flask import Flask, request as flask_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

LOG: list[dict[str, Any]] = []
"""What the application of this process has read."""


def note(source: Any) -> dict[str, Any]:
    """Read *source*, a binary file, to its end; log what it was."""
    digest, length = hashlib.sha256(), 0
    while block := source.read(64 * 1024):
        digest.update(block)
        length += len(block)
    return logged(length, digest.hexdigest())


def logged(length: int, digest: str) -> dict[str, Any]:
    entry = {"length": length, "sha256": digest}
    LOG.append(entry)
    return entry


# Starlette, on any event loop.


async def _starlette_form(request: Request) -> Response:
    async with request.form() as form:
        upload = form["file"]
        assert not isinstance(upload, str)
        digest, length = hashlib.sha256(), 0
        while block := await upload.read(64 * 1024):
            digest.update(block)
            length += len(block)
    return JSONResponse(logged(length, digest.hexdigest()))


async def _starlette_raw(request: Request) -> Response:
    digest, length = hashlib.sha256(), 0
    async for block in request.stream():
        digest.update(block)
        length += len(block)
    return JSONResponse(logged(length, digest.hexdigest()))


async def _starlette_log(request: Request) -> Response:
    return JSONResponse(LOG)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"opened": "by the lifespan"}


async def _state(request: Request) -> Response:
    return PlainTextResponse(request.state.opened)


starlette_app = Starlette(
    routes=[
        Route("/form", _starlette_form, methods=["POST"]),
        Route("/raw", _starlette_raw, methods=["POST", "PUT"]),
        Route("/log", _starlette_log),
        Route("/state", _state),
    ],
    lifespan=_lifespan,
)

# FastAPI, with a route that needs asyncio.

fastapi_app = FastAPI()


@fastapi_app.post("/form")
async def _fastapi_form(file: UploadFile) -> dict[str, Any]:
    await asyncio.sleep(0)
    return await asyncio.get_running_loop().run_in_executor(None, note, file.file)


@fastapi_app.post("/raw")
def _fastapi_raw(file: UploadFile) -> dict[str, Any]:
    return note(file.file)


@fastapi_app.get("/log")
async def _fastapi_log() -> list[dict[str, Any]]:
    return LOG


# Flask.

flask_app = Flask(__name__)


@flask_app.post("/form")
def _flask_form() -> dict[str, Any]:
    return note(flask_request.files["file"].stream)


@flask_app.route("/raw", methods=["POST", "PUT"])
def _flask_raw() -> dict[str, Any]:
    return note(flask_request.stream)


@flask_app.get("/log")
def _flask_log() -> list[dict[str, Any]]:
    return LOG


# Django, as one module.


# Any: Django ships no type information.
def _django_form(request: Any) -> Any:
    return JsonResponse(note(request.FILES["file"]))


def _django_raw(request: Any) -> Any:
    return JsonResponse(note(request))


def _django_log(request: Any) -> Any:
    return HttpResponse(json.dumps(LOG), content_type="application/json")


urlpatterns = [
    path("form", _django_form),
    path("raw", _django_raw),
    path("log", _django_log),
]

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    FILE_UPLOAD_TEMP_DIR=tempfile.gettempdir(),
    SECRET_KEY="for tests only",
)
django.setup()
django_asgi_app = get_asgi_application()
django_wsgi_app = get_wsgi_application()
