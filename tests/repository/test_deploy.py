"""Dashboards, alerts and provisioning: every query uses metrics and labels that the server exports."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.reward.engine import Engine
from app.reward.reward_model import Concept
from app.settings import Settings
from tests.support.paths import ROOT
from tests.support.servers import open_client

DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/sparserm.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
METRICS_OF_PROMETHEUS = {"up"}


def dashboard_and_alert_queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for group in ALERTS["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def selectors(node: Any) -> Iterator[promql.VectorSelector]:
    """All vector selectors of a parsed query."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        value = field_of(node, name)
        for child in value if isinstance(value, list) else [value]:
            if child is not None:
                yield from selectors(child)


def field_of(node: Any, name: str) -> Any:
    """A field of a parsed node, or None if this kind of node does not have it."""
    return getattr(node, name) if name in dir(node) else None


async def exported_metrics(client: httpx.AsyncClient) -> dict[str, set[str]]:
    """The labels of every exported metric, after requests of several kinds."""
    inputs = [{"prompt": "amber", "response": "river"}] * 250
    await client.post("/v1/rewards", json={"inputs": inputs})
    await client.post("/get_reward", json={"query": ["amber"]})
    await client.post("/v1/rewards", json={"inputs": []})
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        if not family.samples:  # a counter with labels that has no samples yet
            labels[f"{family.name}_total"] = {"cause"}
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@pytest.mark.anyio
async def test_queries_use_exported_metrics_and_labels(engine: Engine, settings: Settings) -> None:
    for name, model in engine.models.items():
        concept = Concept("names a river", (model.features[0].latent,), model.features[0].sign)
        engine.models[name] = replace(model, concepts=(concept,))
    async with open_client(engine, settings) as client:
        exported = await exported_metrics(client)
    used = set()
    for query in dashboard_and_alert_queries():
        tree = promql.parse(query.replace("$__rate_interval", "1m"))
        for selector in selectors(tree):
            used.add(selector.name)
            if selector.name in METRICS_OF_PROMETHEUS:
                continue
            assert selector.name in exported, query
            grouped = re.findall(r"by \(([^)]*)\)", query)
            labels = {label.strip() for group in grouped for label in group.split(",")}
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert labels | matched <= exported[selector.name] | {"job"}, query
    assert len(used) > 15


def test_panels_do_not_overlap_and_have_unique_titles() -> None:
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    occupied: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & occupied, panel["title"]
        occupied |= cells


def test_compose_mounts_existing_provisioning() -> None:
    grafana = COMPOSE["services"]["grafana"]
    for mount in grafana["volumes"]:
        assert (DEPLOY.parent / mount.split(":")[0]).is_dir()
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = sources["datasources"][0]["uid"]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {uid}
    assert all(port.startswith("127.0.0.1:") for port in grafana["ports"])
