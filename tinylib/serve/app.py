"""The HTTP application: routes under /v1, and a page to talk to the model.

`/v1/models`, `/v1/completions` and `/v1/chat/completions` take what OpenAI's clients send.  Sampling that a request
leaves out is that of `Sampling`; `top_k`, `min_p` and `repetition_penalty` come on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from tinylib.chat import room
from tinylib.checks import UserError, check_int, raise_if
from tinylib.generate import TextStream, check_tokenizer
from tinylib.model import GPT
from tinylib.sampling import Sampling
from tinylib.serve.batching import Batcher, Job
from tinylib.serve.requests import ChatRequest, CompletionRequest, Failure, Options
from tinylib.tokenizer import Tokenizer, render_prompt

MAX_BODY = 1 << 20
"""Bytes of a request."""
MAX_TEXTS = 16
"""Texts that one request may ask for."""
LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names of the loopback address in a request."""


def create_app(model: GPT, tokenizer: Tokenizer, name: str, *, token: str | None = None, max_rows: int = 16,
               max_waiting: int = 64, hosts: tuple[str, ...] | None = None) -> FastAPI:
    """OpenAI-compatible server of `model`, under `name`, as an ASGI application.

    With `token`, /v1 needs `Authorization: Bearer TOKEN`.  `max_rows` texts share a batch, `max_waiting` more wait, and
    what comes then is answered by 503.  Only requests to one of `hosts` are taken; None takes all.  Raises ConfigError
    for numbers out of range.
    """
    check_tokenizer(model, tokenizer)
    raise_if("serve", [check_int("max_rows", max_rows), check_int("max_waiting", max_waiting, least=0)])
    api = _Api(model, tokenizer, name, token, Batcher(model, tokenizer, max_rows, max_waiting))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(api.batcher.run())
        yield
        running.cancel()

    app = FastAPI(title="tinylib", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.batcher = api.batcher
    app.add_middleware(_Front, hosts=hosts)
    app.add_exception_handler(Failure, lambda _, error: error.response)
    app.add_exception_handler(UserError, lambda _, error: Failure(400, str(error)).response)
    app.add_exception_handler(AnyHTTPException, lambda _, error: Failure(error.status_code, str(error.detail)).response)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.include_router(api.router())
    app.add_api_route("/", _page, include_in_schema=False)
    return app


def _invalid(_: Request, error: RequestValidationError) -> Response:
    """The problem of a request that doesn't fit its description; of several, the one that is most inside."""
    first = max(error.errors(), key=lambda problem: len(problem["loc"]))
    place = [str(part) for part in first["loc"][1:]] if first["type"] != "json_invalid" else []
    message = f"{'.'.join(place)}: {first['msg']}" if place else first["msg"]
    return Failure(400, message, param=place[0] if place else None).response


def _page() -> Response:
    """The page, under a policy that runs its own script and nothing else."""
    nonce = secrets.token_urlsafe(16)
    policy = (f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
              "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    content = files("tinylib.serve").joinpath("page.html").read_text(encoding="utf-8").replace("{nonce}", nonce)
    return HTMLResponse(content, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff",
                                          "Referrer-Policy": "no-referrer"})


class _Front:
    """ASGI middleware: limits the size of bodies, and the names under which the server is reached.

    Without the second, a page from elsewhere could reach it under a name that points to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: tuple[str, ...] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]],
                       send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rsplit(":", 1)[0]
        if self.hosts is not None and host not in self.hosts:
            refused = Failure(403, f"host {host!r} is not this server: use {', '.join(self.hosts)}")
            return await refused.response(scope, receive, send)
        size = 0

        async def limited() -> dict[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes: send less")
            return message

        return await self.app(scope, limited, send)


class _Api:
    """The routes under /v1."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, name: str, token: str | None, batcher: Batcher) -> None:
        self.tokenizer, self.name, self.token, self.batcher = tokenizer, name, token, batcher
        self.model, self.context = model, model.config.seq_len
        self.about = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "tinylib"}

    def router(self) -> APIRouter:
        """The routes, behind the token."""
        router = APIRouter(prefix="/v1", dependencies=[Depends(self.authorize), Depends(self.jobs_of)])
        router.add_api_route("/models", lambda: {"object": "list", "data": [self.about]}, name="models")
        router.add_api_route("/models/{model_id:path}", self.one_model)
        router.add_api_route("/completions", self.completions, methods=["POST"])
        router.add_api_route("/chat/completions", self.chat_completions, methods=["POST"])
        return router

    def authorize(self, request: Request) -> None:
        """Raise Failure 401 unless the request has the token, compared in constant time."""
        given = request.headers.get("authorization", "").encode("latin-1")    # as the bytes came
        if self.token is not None and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise Failure(401, "the token is missing or wrong: send it as Authorization: Bearer TOKEN",
                          code="invalid_api_key")

    async def jobs_of(self, request: Request) -> AsyncIterator[None]:
        """Drop the jobs of a request when its response ends, sent or cut off, even before its first piece."""
        request.state.jobs = []
        try:
            yield
        finally:
            self.batcher.drop(request.state.jobs)

    def one_model(self, model_id: str) -> dict[str, Any]:
        """Raise Failure 404 unless it is the model that is served."""
        if model_id != self.name:
            raise Failure(404, f"model {model_id!r} is not here: use {self.name!r}", "model", "model_not_found")
        return self.about

    async def completions(self, options: CompletionRequest, request: Request) -> Response:
        """Continue a text, or several."""
        self.one_model(options.model)
        prompts = [[self.tokenizer.bos, *self.tokenizer.encode(text)] for text in options.prompt[:MAX_TEXTS + 1]]
        longest = max(map(len, prompts))
        if longest > self.context:
            raise Failure(400, f"the prompt has {longest} tokens, more than the context of {self.context}: shorten it",
                          "prompt", "context_length_exceeded")
        self._submit(request, options, prompts, self._most("max_tokens", options.max_tokens))
        return await _respond(self.batcher, request, options, chat=False)

    async def chat_completions(self, options: ChatRequest, request: Request) -> Response:
        """Answer the last message; the oldest turns are left out where the context is too short for all."""
        self.one_model(options.model)
        asked = "max_completion_tokens" if options.max_completion_tokens else "max_tokens"
        most = self._most(asked, getattr(options, asked))
        messages = [message.plain for message in options.messages]
        ids = render_prompt(self.tokenizer, messages, room(self.model, most))
        self._submit(request, options, [ids], most)
        return await _respond(self.batcher, request, options, chat=True)

    def _most(self, field: str, asked: int | None) -> int:
        """Most tokens of a text."""
        if asked is not None and asked > self.context:
            raise Failure(400, f"{field}={asked} is more than the context of {self.context}", field)
        return asked or min(Sampling.max_tokens, self.context)

    def _submit(self, request: Request, options: Options, prompts: list[list[int]], most: int) -> None:
        """Submit a job for each text, with seeds that follow the first; Failure where there are too many."""
        count = options.n * len(prompts)
        if count > MAX_TEXTS:
            raise Failure(400, f"the request asks for {count} texts, more than {MAX_TEXTS}: send several", "n")
        seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed % (1 << 31)
        each = [Sampling(most, options.repetition_penalty, options.temperature, options.top_k, options.top_p,
                         options.min_p, tuple(options.stop), seed + number) for number in range(options.n)]
        jobs = [Job(place * options.n + number, ids, how, TextStream(self.tokenizer, how.stop))
                for place, ids in enumerate(prompts) for number, how in enumerate(each)]
        self.batcher.submit(jobs)
        request.state.jobs = jobs


async def _respond(batcher: Batcher, request: Request, options: Options, chat: bool) -> Response:
    """The texts of a request's jobs, whole or as server-sent events."""
    jobs = request.state.jobs
    base = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", "created": int(time.time()),
            "model": options.model, "object": "chat.completion" if chat else "text_completion"}
    if options.stream:
        usage = bool((options.stream_options or {}).get("include_usage"))
        return StreamingResponse(_events(batcher, jobs, request, base, usage, chat), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store"})
    texts, reasons = [""] * len(jobs), [""] * len(jobs)
    async for job, piece, reason in batcher.stream(jobs, request):
        texts[job.index] += piece
        reasons[job.index] = reason or ""
    choices = [{"index": index, "logprobs": None, "finish_reason": reason,
                **({"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text})}
               for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))]
    return JSONResponse(base | {"choices": choices, "usage": _usage(jobs)})


async def _events(batcher: Batcher, jobs: list[Job], request: Request, base: dict[str, Any], usage: bool,
                  chat: bool) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece, one with the finish reason, one with usage if asked, [DONE]."""
    base = base | {"object": "chat.completion.chunk"} if chat else base

    def event(job: Job, reason: str | None, **content: Any) -> str:
        return _event(base | {"choices": [{"index": job.index, "logprobs": None, "finish_reason": reason, **content}]})

    try:
        for job in jobs if chat else ():
            yield event(job, None, delta={"role": "assistant", "content": ""})
        async for job, piece, reason in batcher.stream(jobs, request):
            if piece:
                yield event(job, None, **({"delta": {"content": piece}} if chat else {"text": piece}))
            if reason:
                yield event(job, reason, **({"delta": {}} if chat else {"text": ""}))
        if usage:
            yield _event(base | {"choices": [], "usage": _usage(jobs)})
        yield "data: [DONE]\n\n"
    except Failure as error:
        yield _event(error.body)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _usage(jobs: list[Job]) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of the texts."""
    prompt = sum(len(ids) for ids in {id(job.ids): job.ids for job in jobs}.values())
    made = sum(job.tokens for job in jobs)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
