"""Whatever is sent: an answer below 500. Whatever lies on the disk: a model or a BundleError. And no hang."""

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
REQUESTS, BUNDLES = 20_000, 5_000
FILES = sorted(GOLDEN.glob("*.json"))
TURN = {"role": "user", "content": "amber"}
NATIVE: dict[str, dict[str, Any]] = {
    "/v1/rewards": {
        "model": ["alpha", "beta"], "top_k": 2, "explain": "tokens", "clusters": True, "steer": {"3": 0.5},
        "inputs": [{"messages": [TURN], "responses": ["river", "stone"]}, {"prompt": "a", "response": "b"}],
    },
    "/v1/compare": {"model": "beta", "pairs": [{"prompt": "amber", "chosen": "river", "rejected": "stone"}]},
    "/v1/models/beta/reload": {},
}  # fmt: skip
GOLDENS = [
    *(json.loads(file.read_text()) for file in FILES),
    *({"path": path, "request": body} for path, body in NATIVE.items()),
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
    max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The same value with something else in one place."""
    if not path:
        return value
    changed = copy.deepcopy(tree)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@st.composite
def bodies(draw: st.DrawFn) -> Case:
    """A request that was good once."""
    golden = draw(st.sampled_from(GOLDENS))
    body = golden["request"]
    for _ in range(draw(st.integers(0, 3))):
        body = put(body, draw(st.sampled_from(list(places(body)))), draw(JUNK))
    raw = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        raw = raw[:at] + draw(st.binary(max_size=8)) + raw[at + 1 :]
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
    return draw(st.sampled_from(["POST"] * 9 + ["PUT"])), prefix + golden["path"] + query, raw, headers


@pytest.fixture(scope="module")
def client(engine: Engine, settings: Settings) -> Iterator[TestClient]:
    app = create_app(engine, settings, CollectorRegistry())
    with TestClient(app, raise_server_exceptions=True) as found:
        yield found


@FAST
@given(case=bodies())
def test_no_request_breaks_the_server(client: TestClient, case: Case) -> None:
    method, path, body, headers = case
    answer = client.request(method, path, content=body, headers=headers)
    assert answer.status_code < 500, answer.text[:500]
    assert "Traceback" not in answer.text
    for number in numbers(json.loads(answer.content)):
        assert math.isfinite(number)


def numbers(node: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(node, float):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from numbers(value)


def test_no_bundle_breaks_the_loader(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    whole, rng = settings.models_dir / "alpha", random.Random(0)
    served = refused = 0
    for _ in range(BUNDLES):
        folder = tmp_path / "alpha"
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        damage(folder, rng)
        if rng.random() < 0.8:
            tiny.rewrite_digests(folder)
        try:
            Engine(engine.backbone, engine.text, {"alpha": bundle.load_bundle(folder)}).verify()
            served += 1
        except BundleError:
            refused += 1
    assert served + refused == BUNDLES
    assert refused > BUNDLES / 2


def damage(folder: Path, rng: random.Random) -> None:
    """Change one thing or several, by bytes, by JSON or by tensors."""
    for _ in range(rng.randint(1, 3)):
        file = folder / rng.choice(["manifest.json", "weights.safetensors", "features.json", "probes.json"])
        kind = rng.choice([bitten, cut, reworded if file.suffix == ".json" else reshaped])
        kind(file, rng)


def bitten(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes() or b" ")
    for _ in range(rng.randint(1, 4)):
        content[int(len(content) * rng.random() ** 4)] = rng.randrange(256)
    file.write_bytes(content)


def cut(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size + 1)])


def reworded(file: Path, rng: random.Random) -> None:
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
    path = rng.choice(list(places(tree)))
    file.write_text(json.dumps(put(tree, path, rng.choice(junk))))


def reshaped(file: Path, rng: random.Random) -> None:
    try:
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    except Exception:  # noqa: BLE001 # an earlier damage has made it unreadable
        return
    name = rng.choice(sorted(tensors))
    one = tensors[name]
    tensors[name] = rng.choice([
        one[:-1], one[..., None], one * torch.nan, one.long(), one * 1e30, one[:0], -one, one * 0,
        one.mT if one.dim() > 1 else one,
    ]).contiguous()  # fmt: skip
    if rng.random() < 0.1:
        del tensors[name]
    save_file(tensors, file)
