"""A real Prometheus beside a real service: what the dashboard shows is there, and the rules are about what is exported.

It is Debian's. The dashboard's own queries are sent to it, and every alert is tried by its unit tests (promtool).
"""

import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from app import api, errors, oip
from tests.e2e.conftest import Process
from tests.fakes import free_port

DOCKER = Path(__file__).parents[2] / "docker"
RULES = DOCKER / "prometheus" / "rules.yml"
DASHBOARD = json.loads((DOCKER / "grafana" / "nam-serve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
EXPRESSIONS = [target["expr"] for _, target in TARGETS] + [rule["expr"] for group in GROUPS for rule in group["rules"]]
# Given by whoever scrapes, and by Prometheus itself.
SCRAPED = {"job", "instance"}


class Traffic(threading.Thread):
    """Labels, attention, several at once, and something refused, round after round."""

    def __init__(self, url: str, image: bytes) -> None:
        super().__init__(daemon=True)
        self._url, self._image, self._over = url, image, threading.Event()

    def run(self) -> None:
        headers = {"content-type": "image/jpeg"}
        with httpx2.Client(base_url=self._url, headers=headers, timeout=30) as client:
            while not self._over.wait(0.02):
                for path in ("/predict", "/attention"):
                    client.post(path, content=self._image)
                client.post("/predict", content=b"no image")

    def end(self) -> None:
        self._over.set()
        self.join(30)


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        answer = httpx2.get(f"{self.url}/api/v1/{path}", params=query, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What has a value, which a quantile of nothing has not."""
        found = self.get("query", query=expression)["result"]
        return [one for one in found if math.isfinite(float(one["value"][1]))]


def configured(folder: Path, target: str) -> Path:
    """The configuration as it is shipped, but for whom it asks, and how often."""
    told = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    told["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    told["rule_files"] = [str(RULES)]
    told["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(told))
    return folder / "prometheus.yml"


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, serving: Process, photos: dict[str, Path]
) -> Iterator[Prometheus]:
    """It has seen traffic for a few seconds, and sees it still."""
    folder = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{free_port()}"
    options = [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}", "--log.level=warn"]
    configuration = configured(folder, serving.url.removeprefix("http://"))
    process = subprocess.Popen(["prometheus", f"--config.file={configuration}", *options])
    traffic = Traffic(serving.url, photos["cat"].read_bytes())
    traffic.start()
    try:
        running = Prometheus(f"http://{address}")
        assert found(running, "sum(rate(nam_refusals_total[3s])) and sum(nam:gate_spread:images1h) > 0", 180)
        yield running
    finally:
        traffic.end()
        process.terminate()
        process.wait(60)


def found(running: Prometheus, expression: str, seconds: float) -> list[dict[str, Any]]:
    """What it finds, waited for: a scrape that came too late leaves a gap. Nothing, where nothing comes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx2.TransportError, json.JSONDecodeError):  # it still starts, and says so in plain words
            if told := running.query(expression):
                return told
        time.sleep(0.1)
    return []


def asked(expression: str) -> str:
    """As Grafana sends it, nothing chosen."""
    return expression.replace("$__rate_interval", "4s").replace("$job", ".+").replace("$instance", ".+")


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title}, {target['refId']}" for title, target in TARGETS])
def test_every_panel_has_data(prometheus: Prometheus, title: str, target: dict[str, str]) -> None:
    told = found(prometheus, asked(target["expr"]), 1 if "CUDA" in title else 60)
    assert bool(told) == ("CUDA" not in title)
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        assert all(one["metric"][label] for one in told), label


def test_the_choices_above_the_dashboard_are_there(prometheus: Prometheus) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        match, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
        assert prometheus.get(f"label/{label}/values", **{"match[]": asked(match)})


def test_every_rule_is_evaluated_and_nothing_fires(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in GROUPS)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def test_the_service_speaks_as_prometheus_wants_it(serving: Process) -> None:
    text = httpx2.get(serving.url + "/metrics", timeout=60).content
    told = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (told.returncode, told.stdout + told.stderr) == (0, b"")


def test_rules_and_panels_ask_for_what_is_exported(prometheus: Prometheus, serving: Process) -> None:
    declared = set(re.findall(r"^# TYPE (\S+)", httpx2.get(serving.url + "/metrics", timeout=60).text, re.M))
    recorded = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
    for expression in EXPRESSIONS:
        for name in re.findall(r"\b(?:nam|process)_\w+", re.sub(r"nam:[\w:]+", "", expression)):
            assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & declared, name
        assert set(re.findall(r"nam:[\w:]+", expression)) <= recorded


def test_rules_and_panels_choose_by_labels_that_there_are(prometheus: Prometheus) -> None:
    for expression in EXPRESSIONS:
        for name, matchers in re.findall(r"\b((?:nam|process)_\w+)\{([^}]*)\}", expression):
            chosen = set(re.findall(r"(\w+)=", matchers)) - SCRAPED
            series = prometheus.get("series", **{"match[]": name})
            if name != "nam_device_memory_bytes":  # CUDA's, which tests/app/test_metrics.py shows
                assert series
                assert all(chosen <= one.keys() for one in series), (name, chosen)


def test_rules_choose_codes_and_routes_that_there_are() -> None:
    codes, work = {error.code for error in errors.ERRORS}, {*api.WORK, *oip.WORK}
    for expression in EXPRESSIONS:
        for told in re.findall(r'code=~?"([^"]+)"', expression):
            assert set(told.split("|")) <= codes
        for told in re.findall(r'route=~"([^"]+)"', expression):
            assert {route for route in work if re.fullmatch(told, route)} == work
        assert set(re.findall(r'route="([^"]+)"', expression)) <= work


def test_promtool_accepts_the_rules_and_every_alert_does_what_it_should() -> None:
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(RULES.with_suffix(".test.yml"))]):
        told = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr


def test_no_alert_is_without_a_test_or_without_words() -> None:
    tried = set(re.findall(r'alertname="(\w+)"', RULES.with_suffix(".test.yml").read_text()))
    assert tried == {alert["alert"] for alert in ALERTS}
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"].keys() == {"summary", "description"}


def test_compose_and_provisioning_name_files_that_there_are() -> None:
    compose = yaml.safe_load((DOCKER / "compose.observability.yaml").read_text())["services"]
    mounted = {}
    for volume in compose["prometheus"]["volumes"] + compose["grafana"]["volumes"]:
        source, _, inside = volume.removesuffix(":ro").partition(":")
        if source.startswith("."):
            assert (DOCKER / source).exists(), source
            mounted[inside] = DOCKER / source
    provided = DOCKER / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provided / "dashboards" / "nam-serve.yaml").read_text())["providers"]
    assert any(inside.startswith(provider["options"]["path"] + "/") for inside in mounted)
    (source,) = yaml.safe_load((provided / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["static_configs"][0]["targets"] == ["nam:8000"]


def test_the_dashboard_is_whole() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
