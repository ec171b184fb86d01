"""Dashboards, alerts and their provisioning: every query asks for what the server really tells."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.reward.engine import Engine
from app.settings import Settings
from tests.support.paths import ROOT
from tests.support.servers import open_client

DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/sparserm.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
OF_PROMETHEUS = {"up"}


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for group in ALERTS["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def selectors(node: Any) -> Iterator[promql.VectorSelector]:
    """Every series a query asks for."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        inside = vars_of(node, name)
        for one in inside if isinstance(inside, list) else [inside]:
            if one is not None:
                yield from selectors(one)


def vars_of(node: Any, name: str) -> Any:
    """A field of a parsed node, if its kind has it."""
    return getattr(node, name) if name in dir(node) else None


async def told(client: httpx.AsyncClient) -> dict[str, set[str]]:
    """Series and their labels after some of everything."""
    inputs = [{"prompt": "amber", "response": "river"}] * 250
    await client.post("/v1/rewards", json={"inputs": inputs})
    await client.post("/get_reward", json={"query": ["amber"]})
    await client.post("/v1/rewards", json={"inputs": []})
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        if not family.samples:  # labelled, and not counted yet: known by its HELP line
            found[f"{family.name}_total"] = {"cause"}
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.anyio
async def test_every_query_asks_for_series_and_labels_that_are_told(
    engine: Engine, settings: Settings
) -> None:
    async with open_client(engine, settings) as client:
        known = await told(client)
    asked = set()
    for query in queries():
        tree = promql.parse(query.replace("$__rate_interval", "1m"))
        for selector in selectors(tree):
            asked.add(selector.name)
            if selector.name in OF_PROMETHEUS:
                continue
            assert selector.name in known, query
            grouped = re.findall(r"by \(([^)]*)\)", query)
            labels = {label.strip() for group in grouped for label in group.split(",")}
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert labels | matched <= known[selector.name] | {"job"}, query
    assert len(asked) > 15


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_compose_provisions_what_lies_here() -> None:
    grafana = COMPOSE["services"]["grafana"]
    for mount in grafana["volumes"]:
        assert (DEPLOY.parent / mount.split(":")[0]).is_dir()
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = sources["datasources"][0]["uid"]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {uid}
    assert all(port.startswith("127.0.0.1:") for port in grafana["ports"])
