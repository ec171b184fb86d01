"""Naming and testing with an OpenAI-compatible endpoint, against a local server that answers by rules."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from app.errors import SparseRMError
from app.settings import Settings
from app.train.names import endpoint as endpoints
from app.train.names import jobs
from app.train.names.endpoint import ChatEndpoint
from tests.support import named_models
from tests.support.training_setup import ignore_progress

Answer = Callable[[str], tuple[int, str]]
CLIENT = httpx.Client(timeout=10)


class ChatServer(ThreadingHTTPServer):
    """A server of chat completions; `answer` makes status and text from a prompt."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.prompts, self.keys = answer, list[str](), list[str | None]()
        super().__init__(("127.0.0.1", 0), ChatHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class ChatHandler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.prompts.append(prompt)
        self.server.keys.append(self.headers.get("Authorization"))
        status, text = self.server.answer(prompt)
        content = json.dumps(
            {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": text}
        )
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], ChatServer]]:
    servers: list[ChatServer] = []

    def start(answer: Answer) -> ChatServer:
        server = ChatServer(answer)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer_by_amber(prompt: str) -> tuple[int, str]:
    """Name every feature alike, group all that raise rewards, and say that texts with amber fit."""
    if "JSON list of the numbers" in prompt:
        lines = [line for line in prompt.splitlines() if "RESPONSE:" in line]
        fits = [number for number, line in enumerate(lines, 1) if "amber" in line]
        return 200, f"These fit:\n```json\n{fits}\n```"
    if "Sort these features" in prompt:
        latents = [int(line.split()[0]) for line in prompt.splitlines() if "(raises rewards)" in line]
        return 200, json.dumps([{"concept": "says amber", "definition": "Says amber.", "latents": latents}])
    return 200, 'Name: "says the word amber"\n'


def test_features_are_named_grouped_tested_and_kept(
    named_settings: Settings, serve: Callable[[Answer], ChatServer], tmp_path: Path
) -> None:
    server = serve(answer_by_amber)
    store = tmp_path / "answers.jsonl"
    naming, testing = (
        ChatEndpoint(server.url, name, store, CLIENT, "secret") for name in ("writer", "reader")
    )
    scored = jobs.name_automatically(named_models.NAME, naming, testing, named_settings, ignore_progress)
    assert set(server.keys) == {"Bearer secret"}
    model = named_models.load_model(named_settings)
    passed = {thing.key for thing in scored if thing.score.passed}
    assert {str(f.latent) for f in model.features if f.label_items} == {
        key for key in passed if key.isdecimal()
    }
    assert all(f.label == "says the word amber" for f in model.features if f.label_items)
    assert [c.name for c in model.concepts] == (["says amber"] if "says amber" in passed else [])
    count = len(server.prompts)
    jobs.name_automatically(named_models.NAME, naming, testing, named_settings, ignore_progress)
    assert len(server.prompts) == count, "answers are kept"
    evidence = jobs.read_evidence(named_models.load_model(named_settings), named_settings)
    cost = endpoints.estimate_cost(evidence, 20)
    assert cost["calls"] >= len(evidence.features) * 2
    tokens = sum(map(len, server.prompts)) / endpoints.CHARACTERS_PER_TOKEN
    assert 0.3 < cost["input_tokens"] / tokens < 3


def test_a_killed_run_resumes_with_a_damaged_store(
    serve: Callable[[Answer], ChatServer], tmp_path: Path
) -> None:
    server = serve(answer_by_amber)
    store = tmp_path / "answers.jsonl"
    endpoint = ChatEndpoint(server.url, "writer", store, CLIENT)
    assert endpoint.ask("a feature") == 'Name: "says the word amber"\n'
    store.write_text(store.read_text() + '\n{"key": "cut of')
    endpoint = ChatEndpoint(server.url, "writer", store, CLIENT)
    assert endpoint.ask("another")
    endpoint = ChatEndpoint(server.url, "writer", store, CLIENT)
    assert endpoint.ask("another")
    assert endpoint.ask("a feature") == 'Name: "says the word amber"\n'
    assert len(server.prompts) == 2
    assert server.keys == [None, None]


def test_busy_endpoints_are_asked_again(serve: Callable[[Answer], ChatServer], tmp_path: Path) -> None:
    statuses = iter([429, 503, 200])
    server = serve(lambda _: (next(statuses), "a name"))
    pauses: list[float] = []
    endpoint = ChatEndpoint(server.url, "writer", tmp_path / "answers", CLIENT, pause=pauses.append)
    assert endpoint.ask("x") == "a name"
    assert pauses == [1.0, 2.0]


def test_errors_name_the_endpoint_and_the_remedy(
    serve: Callable[[Answer], ChatServer], tmp_path: Path
) -> None:
    refusing = serve(lambda _: (401, "wrong key"))
    with pytest.raises(SparseRMError, match=r"status 401.*wrong key"):
        ChatEndpoint(refusing.url, "writer", tmp_path / "a", CLIENT).ask("x")
    busy = serve(lambda _: (503, "busy"))
    with pytest.raises(SparseRMError, match="run again to resume"):
        ChatEndpoint(busy.url, "writer", tmp_path / "a", CLIENT, pause=lambda _: None).ask("x")
    with pytest.raises(SparseRMError, match="ConnectError"):
        ChatEndpoint("http://127.0.0.1:9", "writer", tmp_path / "a", CLIENT, pause=lambda _: None).ask("x")
    assert not (tmp_path / "a").exists()


QUESTION = {"key": "1", "name": "says amber", "texts": [{"prompt": "p", "response": "r"}] * 3}


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ("[1, 3]", [True, False, True]),
        ("[2] is close, but the answer is: [1, 3].", [True, False, True]),
        ("[]", [False] * 3),
        ("I would rather not [say", None),
    ],
)
def test_answers_are_read_and_others_left_out(
    serve: Callable[[Answer], ChatServer], tmp_path: Path, answer: str, fits: list[bool] | None
) -> None:
    endpoint = ChatEndpoint(serve(lambda _: (200, answer)).url, "reader", tmp_path / "a", CLIENT)
    answered = endpoints.answer_test([QUESTION], endpoint, lambda _: None)
    assert [row["fits"] for row in answered] == ([] if fits is None else [fits])


@pytest.mark.parametrize("latents", ["[[1]]", '[{"a": 1}]', '["1"]', "[1.5]", "[true]", "[]", '"all"'])
def test_groups_that_make_no_sense_are_left_out(
    serve: Callable[[Answer], ChatServer], named_settings: Settings, tmp_path: Path, latents: str
) -> None:
    text = f'[{{"concept": "a", "latents": {latents}}}, 7]'
    endpoint = ChatEndpoint(serve(lambda _: (200, text)).url, "writer", tmp_path / "a", CLIENT)
    model = named_models.load_model(named_settings)
    names = {feature.latent: "x" for feature in model.features if feature.sign}
    assert endpoints.group_into_concepts(model, names, endpoint) == ()


def test_a_feature_is_in_one_concept_once(
    serve: Callable[[Answer], ChatServer], named_settings: Settings, tmp_path: Path
) -> None:
    model = named_models.load_model(named_settings)
    first, second, *_ = (feature.latent for feature in model.features if feature.sign > 0)
    groups = [
        {"concept": " says  amber ", "latents": [first, first]},
        {"concept": "says amber", "latents": [second]},
        {"concept": "b", "latents": [first, second]},
    ]  # fmt: skip
    endpoint = ChatEndpoint(serve(lambda _: (200, json.dumps(groups))).url, "writer", tmp_path / "a", CLIENT)
    concepts = endpoints.group_into_concepts(model, {first: "x", second: "y"}, endpoint)
    assert [(concept.name, concept.latents) for concept in concepts] == [
        ("says amber", (first,)), ("b", (second,)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("127.0.0.1:9", "", "starts with http"),
        ("http://x", "ä", "no key has"),
        ("http://x", "a\nb", "no key has"),
    ],
)
def test_addresses_and_keys_are_checked(tmp_path: Path, url: str, key: str, message: str) -> None:
    with pytest.raises(SparseRMError, match=message):
        ChatEndpoint(url, "writer", tmp_path / "a", CLIENT, key)
