"""Fuzzing: every request gets a status below 500, every bundle loads or raises BundleError, nothing hangs."""

import copy
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from app.errors import BundleError
from app.reward import bundle
from app.reward.engine import Engine
from app.serve.application import create_app
from app.settings import Settings
from tests.support import tiny
from tests.support.paths import GOLDEN

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]
MAX_REQUESTS = 20_000
MAX_BUNDLES = 5_000
GOLDEN_FILES = sorted(GOLDEN.glob("*.json"))
MESSAGE = {"role": "user", "content": "amber"}
ANSWER = {"role": "assistant", "content": "river"}
NATIVE_REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/rewards": {
        "model": ["alpha", "beta"], "top_k": 2, "explain": "tokens", "steer": {"3": 0.5},
        "inputs": [
            {"messages": [MESSAGE], "responses": ["river", "stone"]}, {"prompt": "a", "response": "b"},
        ],
    },
    "/m/gamma/v1/rewards": {
        "explain": "turns", "length_control": True, "truncate": True,
        "inputs": [
            {"messages": [MESSAGE, ANSWER, MESSAGE], "responses": ["river", "stone"]},
            {"messages": [MESSAGE, ANSWER]},
        ],
    },
    "/v1/compare": {"model": "beta", "pairs": [{"prompt": "amber", "chosen": "river", "rejected": "stone"}]},
    "/v1/models/beta/reload": {},
}  # fmt: skip
VALID_REQUESTS = [
    *(json.loads(file.read_text()) for file in GOLDEN_FILES),
    *({"path": path, "request": body} for path, body in NATIVE_REQUESTS.items()),
]
Case = tuple[str, str, bytes, dict[str, str]]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40),
    st.sampled_from([
        2**63, -1, 1e308, "\ud800", "\x00", "<|im_end|>", "<|im_start|>assistant\n", "a" * 5000, [], {}, [[]],
        [None], {"role": "assistant"}, "alpha", "alpha@none", "../../etc/passwd", "NaN", [["a", "b"], "c"],
    ]),
)  # fmt: skip
FAST = hypothesis_settings(
    max_examples=MAX_REQUESTS, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def paths_in(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node in a JSON value."""
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from paths_in(value, (*path, key))


def replace_at(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON value with the node at `path` replaced."""
    if not path:
        return value
    changed = copy.deepcopy(tree)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@st.composite
def mutated_requests(draw: st.DrawFn) -> Case:
    """A valid request with up to three nodes replaced, and sometimes damaged bytes."""
    valid = draw(st.sampled_from(VALID_REQUESTS))
    body = valid["request"]
    for _ in range(draw(st.integers(0, 3))):
        body = replace_at(body, draw(st.sampled_from(list(paths_in(body)))), draw(JUNK))
    raw = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        position = draw(st.integers(0, max(len(raw) - 1, 0)))
        raw = raw[:position] + draw(st.binary(max_size=8)) + raw[position + 1 :]
    prefix = draw(st.sampled_from(["", "", "", "/m/beta", "/m/nobody", "/k/x", "/m/alpha@none"]))
    query = draw(st.sampled_from(["", "", "?mode=split", "?mode=x", "?key=reward", "?key=", "?%00"]))
    headers = draw(
        st.fixed_dictionaries(
            {"Content-Type": st.sampled_from(["application/json"] * 8 + ["text/plain", "\tx", ""])},
            optional={
                "X-SparseRM-Timeout": st.sampled_from(["5", "0", "-1", "nan", "inf", "1e9", "x"]),
                "X-SparseRM-Priority": st.sampled_from(["urgent", "normal", "last"]),
                "X-SparseRM-Caller": st.sampled_from(["me", "a b", "x" * 100]),
                "X-Request-ID": st.sampled_from(["1", "a" * 300, "\x7f"]),
            },
        )
    )
    return draw(st.sampled_from(["POST"] * 9 + ["PUT"])), prefix + valid["path"] + query, raw, headers


@pytest.fixture(scope="module")
def client(engine: Engine, settings: Settings) -> Iterator[TestClient]:
    app = create_app(engine, settings, CollectorRegistry())
    with TestClient(app, raise_server_exceptions=True) as test_client:
        yield test_client


@FAST
@given(case=mutated_requests())
def test_mutated_request_gets_a_status_below_500(client: TestClient, case: Case) -> None:
    method, path, body, headers = case
    response = client.request(method, path, content=body, headers=headers)
    assert response.status_code < 500, response.text[:500]
    assert "Traceback" not in response.text
    for number in numbers_in(json.loads(response.content)):
        assert math.isfinite(number)


def numbers_in(node: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(node, float):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from numbers_in(value)


def test_damaged_bundle_loads_or_raises_bundle_error(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    intact, rng = settings.models_dir / "alpha", random.Random(0)
    loaded = refused = 0
    for _ in range(MAX_BUNDLES):
        folder = tmp_path / "alpha"
        shutil.copytree(intact, folder, dirs_exist_ok=True)
        damage(folder, rng)
        if rng.random() < 0.8:
            tiny.rewrite_digests(folder)
        try:
            Engine(engine.backbone, engine.text, {"alpha": bundle.load_bundle(folder)}).verify()
            loaded += 1
        except BundleError:
            refused += 1
    assert loaded + refused == MAX_BUNDLES
    assert refused > MAX_BUNDLES / 2


def damage(folder: Path, rng: random.Random) -> None:
    """Damage one to three things: bytes, JSON nodes or tensors."""
    for _ in range(rng.randint(1, 3)):
        file = folder / rng.choice(["manifest.json", "weights.safetensors", "features.json", "probes.json"])
        change = rng.choice([flip_bytes, truncate, change_json if file.suffix == ".json" else change_tensor])
        change(file, rng)


def flip_bytes(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes() or b" ")
    for _ in range(rng.randint(1, 4)):
        content[int(len(content) * rng.random() ** 4)] = rng.randrange(256)
    file.write_bytes(content)


def truncate(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size + 1)])


def change_json(file: Path, rng: random.Random) -> None:
    try:
        tree = json.loads(file.read_bytes())
    except ValueError:
        return
    junk: list[Any] = [
        None,
        -1,
        0,
        2**40,
        1e308,
        float("nan"),
        "",
        "x" * 1000,
        [],
        {},
        True,
        [[]],
        "../up",
        "Infinity",
    ]
    path = rng.choice(list(paths_in(tree)))
    file.write_text(json.dumps(replace_at(tree, path, rng.choice(junk))))


def change_tensor(file: Path, rng: random.Random) -> None:
    try:
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    except Exception:  # noqa: BLE001 # earlier damage has made it unreadable
        return
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    tensors[name] = rng.choice([
        tensor[:-1], tensor[..., None], tensor * torch.nan, tensor.long(), tensor * 1e30, tensor[:0],
        -tensor, tensor * 0, tensor.mT if tensor.dim() > 1 else tensor,
    ]).contiguous()  # fmt: skip
    if rng.random() < 0.1:
        del tensors[name]
    save_file(tensors, file)
