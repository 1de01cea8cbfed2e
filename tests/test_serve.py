"""The server: OpenAI's own client, shared batches, limits, errors, vanished clients, the page in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
import uvicorn
from helpers import randomised

from tinylib.checks import ConfigError
from tinylib.config import GPTConfig
from tinylib.generate import Engine, generate, generate_batch
from tinylib.sampling import Sampling
from tinylib.serve import create_app
from tinylib.serve.app import LOCAL
from tinylib.tokenizer import Tokenizer, render_prompt

TEXT = ["What does the cat do?  The cat sat on the mat, and the hat sat on the cat."]
SHAPE = GPTConfig(depth=2, dim=32, vocab_size=300, head_dim=16, seq_len=64)
MESSAGES = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 285)


class Server:
    """A server in a thread, at a free port of the loopback address."""

    def __init__(self, tokenizer: Tokenizer, **options: object) -> None:
        self.model, self.tokenizer = randomised(SHAPE), tokenizer
        app = create_app(self.model, tokenizer, "tiny", hosts=LOCAL, **options)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, path: str = "chat/completions", **body: object) -> httpx.Response:
        content = {"model": "tiny", **({"messages": MESSAGES} if path == "chat/completions" else {}), **body}
        return httpx.post(f"{self.url}/v1/{path}", json=content)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Server]:
    running = Server(tokenizer)
    yield running
    running.close()


def greedy(server: Server, prompt: str, tokens: int = 12) -> str:
    return "".join(generate(server.model, server.tokenizer, prompt, temperature=0, max_tokens=tokens))


def error_of(response: httpx.Response) -> tuple[int, str, str | None, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["message"], error["param"], error["code"]


# OpenAI's client


def test_openai_client_lists_models(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert server.client().models.retrieve("tiny").owned_by == "tinylib"
    with pytest.raises(openai.NotFoundError, match="use 'tiny'"):
        server.client().models.retrieve("gpt-5")


def test_openai_client_completes(server: Server) -> None:
    made = server.client().completions.create(model="tiny", prompt="the cat", temperature=0, max_tokens=12)
    assert made.choices[0].text == greedy(server, "the cat")
    assert made.choices[0].finish_reason == "length"
    prompt = 1 + len(server.tokenizer.encode("the cat"))
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (prompt, 12)


def test_openai_client_chats(server: Server) -> None:
    made = server.client().chat.completions.create(
        model="tiny", messages=[{"role": "system", "content": "Be brief."}, *MESSAGES], temperature=0,
        max_completion_tokens=12)
    ids = render_prompt(server.tokenizer, [{"role": "user", "content": "Be brief.\n\nthe cat"}])
    assert made.choices[0].message.role == "assistant" and made.usage.prompt_tokens == len(ids)
    alone = generate_batch(server.model, server.tokenizer, [ids], [Sampling(max_tokens=12, temperature=0)])
    assert made.choices[0].message.content == "".join(piece for _, piece in alone)
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    whole, split = (server.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], temperature=0) for content in ("the cat", parts))
    assert whole.choices[0].message.content == split.choices[0].message.content


@pytest.mark.parametrize("chat", [False, True])
def test_openai_client_streams(server: Server, chat: bool) -> None:
    api = server.client().chat.completions if chat else server.client().completions
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 12, "n": 2,
             **({"messages": MESSAGES} if chat else {"prompt": "the cat"})}
    texts, reasons, usage = ["", ""], {}, None
    for chunk in api.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta.content or "") if chat else choice.text
            reasons[choice.index] = choice.finish_reason
    whole = api.create(**asked)
    assert texts == [choice.message.content if chat else choice.text for choice in whole.choices]
    assert reasons == {0: "length", 1: "length"} and usage == whole.usage and usage.completion_tokens == 24


def test_seeds_and_choices(server: Server) -> None:
    def texts(**options: object) -> list[str]:
        made = server.client().completions.create(model="tiny", prompt=["the cat", "the hat"], max_tokens=12, **options)
        return [choice.text for choice in made.choices]

    assert texts(seed=3, n=2) == texts(seed=3, n=2) != texts(seed=4, n=2)
    alone = ["".join(generate(server.model, server.tokenizer, prompt, max_tokens=12, seed=seed))
             for prompt in ("the cat", "the hat") for seed in (3, 4)]
    assert texts(seed=3, n=2) == alone


def test_stop_strings_end_the_text(server: Server) -> None:
    whole = greedy(server, "the cat")
    stop = whole[3:5]
    made = server.client().completions.create(model="tiny", prompt="the cat", temperature=0, max_tokens=12, stop=stop)
    assert made.choices[0].text == whole[:whole.index(stop)] and made.choices[0].finish_reason == "stop"


def test_long_and_several_stop_strings(server: Server) -> None:
    whole = greedy(server, "the cat", 40)
    stop = whole[4:12]
    for given in (stop, ["<never>", stop]):
        answer = server.post("completions", prompt="the cat", temperature=0, max_tokens=40, stop=given)
        choice = answer.json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (whole[:whole.index(stop)], "stop")


def test_a_special_token_ends_the_text(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    end = server.tokenizer.special_ids["<|assistant_end|>"]
    ids = iter([*server.tokenizer.encode("hat"), end])
    monkeypatch.setattr("tinylib.generate.sample", lambda logits_V, request: torch.tensor(next(ids)))
    choice = server.post(max_tokens=20).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hat", "stop")


def test_a_tiny_temperature_is_greedy(server: Server) -> None:
    choice = server.post("completions", prompt="the cat", temperature=1e-300, max_tokens=12).json()["choices"][0]
    assert choice["text"] == greedy(server, "the cat")


def test_token(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, token="sésame")
    with pytest.raises(openai.AuthenticationError, match="token is missing or wrong"):
        server.client("wrong").models.list()
    header = {"Authorization": "Bearer sésame".encode()}
    assert httpx.get(f"{server.url}/v1/models", headers=header).status_code == 200
    assert httpx.get(server.url).status_code == 200, "the page itself needs none, it asks for it"
    server.close()


# Batches


def test_requests_share_batches_and_keep_their_texts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, step = [], Engine.step

    def counted(engine: Engine) -> object:
        rows.append(len(engine.requests))
        return step(engine)

    monkeypatch.setattr(Engine, "step", counted)
    prompts = [f"the cat {'sat ' * number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda prompt: server.post("completions", prompt=prompt, temperature=0, max_tokens=30)
                             .json()["choices"][0]["text"], prompts))
    assert max(rows) > 3
    assert made == [greedy(server, prompt, 30) for prompt in prompts]


def test_a_vanished_client_frees_its_row(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step
    seen: list[int] = []

    def slow(engine: Engine) -> object:
        time.sleep(0.02)
        seen.append(len(engine.requests))
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)
    body = {"model": "tiny", "prompt": "the cat", "max_tokens": 64}
    for stream in (True, False):
        seen.clear()
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.3) as client, client.stream(
                "POST", f"{server.url}/v1/completions", json=body | {"stream": stream}) as response:
            next(response.iter_bytes())
            raise httpx.ReadTimeout("enough of it")
        time.sleep(0.5)
        assert len(seen) < 50, "64 tokens were not made"
        assert server.post("completions", prompt="the cat", max_tokens=2).status_code == 200


def test_too_many_requests_are_announced(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    server, step = Server(tokenizer, max_rows=1, max_waiting=2), Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (time.sleep(0.02), step(engine))[1])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post("completions", prompt="the", max_tokens=20), range(8)))
    full = [answer for answer in answers if answer.status_code == 503]
    assert full and all(answer.headers["retry-after"] == "1" for answer in full)
    assert error_of(full[0])[3] == "overloaded"
    assert sum(answer.status_code == 200 for answer in answers) + len(full) == 8
    server.close()


@pytest.mark.parametrize("stream", [False, True])
def test_no_burst_gets_past_the_limit(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    server, step = Server(tokenizer, max_rows=2, max_waiting=3), Engine.step
    assert server.post(n=5, max_tokens=2).status_code == 200, "an idle server takes as many as may run and wait"
    entered, go = threading.Event(), threading.Event()
    monkeypatch.setattr(Engine, "step", lambda engine: (entered.set(), go.wait(20), step(engine))[2])
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(server.post, stream=stream, max_tokens=6) for _ in range(20)]
        while sum(answer.done() for answer in answers) < 15:
            time.sleep(0.01)
        go.set()
        statuses = sorted(answer.result().status_code for answer in answers)
    assert entered.is_set() and statuses == [200] * 5 + [503] * 15
    monkeypatch.undo()
    assert server.post(n=5, max_tokens=2).status_code == 200, "all places are free again"
    server.close()


def test_an_engine_that_cannot_be_made_anew_ends_requests_and_is_tried_again(
        server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "add", lambda *arguments: 1 / 0)
        patch.setattr(Engine, "__init__", lambda *arguments: 1 / 0)
        for _ in range(2):
            assert error_of(server.post())[3] == "model_failed"
    assert server.post(max_tokens=2).status_code == 200


def test_rows_are_checked(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="max_rows=0"):
        create_app(randomised(SHAPE), tokenizer, "tiny", max_rows=0)


def test_a_failure_of_the_model_ends_its_requests_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "add", lambda *arguments: 1 / 0)
        assert error_of(server.post())[:2] == (503, "the model failed: ZeroDivisionError")
        events = server.post(stream=True).text
        assert json.loads(events.strip().splitlines()[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert server.post(max_tokens=2).status_code == 200


# Bad requests


@pytest.mark.parametrize(("body", "status", "said", "param"), [
    ({"messages": []}, 400, "at least 1 item", "messages"), ({"messages": [{"role": "user"}]}, 400, "required", None),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "take turns", None),
    ({"messages": [{"role": "user", "content": "hat " * 200}]}, 400, "shorten it", None),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, 400, "'text'", None),
    ({"messages": [{"role": "user", "content": "x"}] * 1001}, 400, "at most 1000", "messages"),
    ({"model": "gpt-5"}, 404, "use 'tiny'", "model"),
    ({"temperature": 3}, 400, "less than or equal to 2", "temperature"), ({"seed": "x"}, 400, "integer", "seed"),
    ({"top_p": 0}, 400, "greater than 0", "top_p"), ({"n": 9}, 400, "less than or equal to 8", "n"),
    ({"max_tokens": 0}, 400, "greater than", "max_tokens"), ({"max_tokens": 65}, 400, "context of 64", "max_tokens"),
    ({"stop": [""]}, 400, "empty string", None), ({"stop": list("abcde")}, 400, "at most 4", None),
    ({"tools": [{"type": "function"}]}, 400, "at most 0", "tools"), ({"logprobs": True}, 400, "False", "logprobs"),
    ({"response_format": {"type": "json_object"}}, 400, "'text'", "response_format"),
    ({"max_completion_tokens": 65}, 400, "context of 64", "max_completion_tokens"),
    ({"stop": 5}, 400, "valid list", "stop"), ({"stop": "a" * 201}, 400, "at most 200", "stop"),
    ({"top_logprobs": 5}, 400, "less than or equal to 0", "top_logprobs"),
    ({"presence_penalty": 1}, 400, "less than or equal to 0", "presence_penalty")])
def test_bad_chat_requests(server: Server, body: dict, status: int, said: str, param: str | None) -> None:
    found = error_of(server.post(**body))
    assert found[0] == status and said in found[1]
    assert param is None or found[2] == param


def test_neutral_and_unknown_fields_are_taken(server: Server) -> None:
    answer = server.post(max_tokens=2, presence_penalty=0, frequency_penalty=0.0, logprobs=False, tools=[], user="me",
                         response_format={"type": "text"}, store=False, metadata={}, seed=-5)
    assert answer.status_code == 200
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "seed", "stream", "stream_options", "logprobs", "tools",
                           "response_format", "presence_penalty", "max_completion_tokens", "min_p", "top_k"))
    assert server.post(max_tokens=2, **nulls).status_code == 200, "clients send None as null"


def test_bad_completions(server: Server) -> None:
    assert error_of(server.post("completions", prompt="hat " * 200))[3] == "context_length_exceeded"
    assert error_of(server.post("completions", prompt=[]))[2] == "prompt"
    assert error_of(server.post("completions", prompt=["a"] * 9, n=2))[:2] == (
        400, "the request asks for 18 texts, more than 16: send several")
    assert error_of(server.post("completions", prompt="a", logprobs=0))[2] == "logprobs"
    assert error_of(server.post("completions", prompt=[1, 2]))[2] == "prompt"
    answer = server.post("completions", prompt="", max_tokens=12, temperature=0).json()["choices"][0]
    assert answer["text"] == greedy(server, ""), "BOS alone begins a text"


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "tiny", "prompt": "\\ud800"}',
    b'{"model": "\\ud800", "prompt": "a"}', b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
    b'{"model": "tiny", "prompt": "a", "seed": 1e400}', b'{"model": "tiny", "prompt": ' + b"[" * 100_000,
    b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5_000 + b"}"])
def test_bodies_that_are_no_request(server: Server, content: bytes) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert error_of(answer)[0] == 400


def test_large_bodies_and_other_hosts_and_routes(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 16)

    json_type = {"Content-Type": "application/json"}
    large = httpx.post(f"{server.url}/v1/completions", content=b" " * (2 << 20), headers=json_type)
    streamed = httpx.post(f"{server.url}/v1/completions", content=chunks(), headers=json_type)
    assert error_of(large)[0] == error_of(streamed)[0] == 413
    assert error_of(httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"}))[0] == 403
    assert error_of(httpx.get(f"{server.url}/v2"))[0] == 404
    assert error_of(httpx.get(f"{server.url}/v1/completions"))[0] == 405
    form = httpx.post(f"{server.url}/v1/completions", content=b'{"model": "tiny", "prompt": "a"}',
                      headers={"Content-Type": "text/plain"})
    assert error_of(form)[0] == 400, "another page can send a form, but no JSON"


# The page


@pytest.fixture
def page(server: Server) -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
                     if Path(path).exists()), None)
    if chromium is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 420, "height": 720})
        opened.problems = []
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.on("console", lambda message: opened.problems.append(message.text) if message.type == "error" else None)
        opened.goto(server.url)
        yield opened
        browser.close()


def test_page_in_a_browser(page: object, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "<img src=x onerror=\"document.title='owned'\"> <b>bold</b>"
    monkeypatch.setattr("tinylib.generate.TextStream.add", lambda stream, token, last: said if last else "")
    page.wait_for_selector("#name:has-text('tiny')")
    page.fill("#question", "Which module?")
    page.press("#question", "Enter")
    page.wait_for_selector("#talk .assistant:has-text('bold')")
    assert page.text_content("#talk .assistant") == said, "what the model says is text"
    assert page.query_selector("#talk img") is None and page.title() == "tiny"
    page.wait_for_selector("#send:has-text('Send')")
    page.fill("#question", "And it?")
    page.click("#send")
    page.wait_for_selector("#talk .assistant >> nth=1")
    page.wait_for_selector("#send:has-text('Send')")
    page.click("#reset")
    assert page.query_selector("#talk .assistant") is None
    assert page.problems == []
    page.fill("#temperature", "9")
    page.fill("#question", "And now?")
    page.press("#question", "Enter")
    page.wait_for_selector("#talk .error:has-text('temperature')")
    assert page.query_selector("#talk .assistant") is None, "no empty answer beside the error"


def test_page_stops_an_answer(page: object, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (time.sleep(0.05), step(engine))[1])
    page.fill("#question", "the cat")
    page.press("#question", "Enter")
    page.wait_for_selector("#talk .assistant:text-matches('..')")
    page.click("#send")
    page.wait_for_selector("#send:has-text('Send')")
    assert page.problems == []


# Long tests


ALONE = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_serve import SHAPE, TEXT, Engine, Tokenizer, randomised
from tinylib.serve import serve
step = Engine.step
Engine.step = lambda engine: (time.sleep(0.1), step(engine))[1]
serve(randomised(SHAPE), Tokenizer.train(TEXT, 285), "tiny", port=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_ctrl_c_ends_a_busy_server_quietly(stream: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", ALONE], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process, ThreadPoolExecutor(1) as pool:
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        body = {"model": "tiny", "prompt": "the cat", "max_tokens": 60, "stream": stream, "temperature": 0}
        answer = pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=30)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=30)
    last = answer.result().text.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "shutting_down"
    assert (process.returncode, printed, errors) == (0, "", "")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_load(tokenizer: Tokenizer) -> None:
    """64 clients for a minute: half of them stream, some read slowly, some vanish; every finished answer is right."""
    server, process = Server(tokenizer), psutil.Process()
    expected = {prompt: greedy(server, prompt, 24) for prompt in ("the cat", "the hat sat", "on the mat", "a")}
    deadline, counts = time.monotonic() + 60, {"right": 0, "vanished": 0, "busy": 0}

    async def client(number: int, http: httpx.AsyncClient) -> None:
        prompts = list(expected)
        for turn in range(10_000):
            if time.monotonic() > deadline:
                return
            prompt = prompts[(number + turn) % len(prompts)]
            body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 24, "stream": number % 2 == 0}
            async with http.stream("POST", f"{server.url}/v1/completions", json=body) as response:
                if response.status_code == 503:
                    counts["busy"] += 1
                    await asyncio.sleep(float(response.headers["retry-after"]) / 4)
                    continue
                assert response.status_code == 200
                lines = []
                async for line in response.aiter_lines():
                    lines.append(line)
                    if number % 8 == 0 and turn % 3 == 0 and len(lines) > 4:
                        break
                    if number % 8 == 2:
                        await asyncio.sleep(0.02)
                else:
                    events = [json.loads(line.removeprefix("data: ")) for line in lines
                              if line and line != "data: [DONE]"]
                    assert "".join(event["choices"][0]["text"] for event in events) == expected[prompt]
                    counts["right"] += 1
                    continue
                counts["vanished"] += 1

    async def all_clients() -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with httpx.AsyncClient(limits=limits, timeout=60) as http:
            await asyncio.gather(*(client(number, http) for number in range(64)))

    warm = process.memory_info().rss
    began = time.monotonic()
    asyncio.run(all_clients())
    grown = process.memory_info().rss - warm
    print(f"{counts}, {time.monotonic() - began:.0f} s, memory {warm / 1e6:.0f} MB, {grown / 1e6:+.1f} MB")
    assert counts["right"] > 200 and counts["vanished"] > 5
    assert grown < 50e6
    assert server.post("completions", prompt="the cat", max_tokens=2).status_code == 200
    server.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fuzz_by_the_servers_own_description(server: Server) -> None:
    """schemathesis sends what the OpenAPI description allows, and what it doesn't: no 5xx but an announced 503."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None,
                      phases=[Phase.generate])
            def check(case: object) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = "tiny"    # any other ends in a 404
                response = case.call()
                seen[response.status_code] = seen.get(response.status_code, 0) + 1
                assert response.status_code < 500 or response.json()["error"]["code"] == "overloaded", response.text
                if response.status_code >= 400:
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}

            with contextlib.suppress(Unsatisfiable):    # a route without parameters has no wrong ones
                given(case=operation.as_strategy(generation_mode=mode))(check)()
    print(seen)
    assert sum(seen.values()) > 300
