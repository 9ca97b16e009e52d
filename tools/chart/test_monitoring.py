"""What Prometheus and Grafana are given: queries name what there is, the dashboard is as Grafana reads it, and every
alert has its chapter in the runbook."""

import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

import dashboard
from chart import BINARY, CHART, ROOT, of_kind, without_settings

promql_parser = pytest.importorskip("promql_parser")

HERE = Path(__file__).parent
SOURCE = (ROOT / "src/telemetry/metrics.rs").read_text()
# What Prometheus itself adds, as far as queries may rely on it; `up` beside these.
TARGET_LABELS = {"namespace", "pod", "instance", "job"}
RULES = [
    rule
    for path in sorted((CHART / "files/rules").glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted((CHART / "files").glob("dashboard*.json"))}
# The last argument is the buckets' where there are some.
DECLARED = re.compile(r'= (counter|gauge|histogram)(s?)\("(\w+)"(?:, &\[([^\]]*)\])?')


def metrics():
    """{series: labels}, as the service's source declares them."""
    found = {}
    for kind, _, name, labels in DECLARED.findall(SOURCE):
        labels = set(re.findall(r'"(\w+)"', labels))
        if kind == "histogram":
            found |= {f"sidelens_{name}_{part}": labels for part in ("sum", "count")}
            found[f"sidelens_{name}_bucket"] = labels | {"le"}
        else:
            found[f"sidelens_{name}"] = labels
    return found


METRICS = metrics() | {"up": TARGET_LABELS}
# Values of labels that the source lists.
VALUES = {
    "route": "ROUTES", "status": "STATUSES", "files": "FILES", "lane": "LANES", "tier": "TIERS",
    "operation": "REDIS_OPERATIONS", "reason": "REFUSALS",
}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}


def listed(constant):
    return set(re.findall(r'"(\w+)"', re.search(rf"const {constant}: \[&str; \d+\]\s*=\s*\[(.*?)\];", SOURCE, re.S)[1]))


def variables_filled(expression):
    return expression.replace("$__rate_interval", "1m").replace("$__interval", "1m").replace("$__range", "1h")


def parts(node):
    """Every node of an expression."""
    yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        below = getattr(node, name, None)
        if below is not None:
            yield from parts(below)
    for below in getattr(node, "args", None) or []:
        yield from parts(below)


def selectors(tree):
    return [node for node in parts(tree) if isinstance(node, promql_parser.VectorSelector)]


def complaints(expression):
    """What is wrong with the names in an expression."""
    tree = promql_parser.parse(variables_filled(expression))
    known = set(TARGET_LABELS)
    for selector in selectors(tree):
        name = selector.name
        if name in RECORDED:
            inner = promql_parser.parse(RECORDED[name])
            labels = {label for node in parts(inner) for label in grouping(node)}
        elif name in METRICS:
            labels = METRICS[name]
        else:
            yield f"no metric {name}"
            continue
        known |= labels
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels | TARGET_LABELS:
                yield f"{name} has no label {matcher.name}"
            elif matcher.name in VALUES and "$" not in matcher.value:
                wrong = set(matcher.value.split("|")) - listed(VALUES[matcher.name])
                if wrong:
                    yield f"{name}: {matcher.name} is never {', '.join(sorted(wrong))}"
    for node in parts(tree):
        for label in grouping(node):
            if label not in known:
                yield f"nothing has the label {label}"


def grouping(node):
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
        return list(modifier.labels)
    return []


def panels():
    for name, board in DASHBOARDS.items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield pytest.param(panel, id=f"{name}: {panel['title']}")


def test_the_source_declares_what_it_registers():
    fields = re.search(r"^metrics! \{(.*?)\n\}", SOURCE, re.S | re.M)[1]
    assert len(DECLARED.findall(SOURCE)) == len(re.findall(r"^    \w+:", fields, re.M))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_name_what_there_is(rule):
    assert not list(complaints(rule["expr"]))


@pytest.mark.parametrize("panel", list(panels()))
def test_panels_name_what_there_is(panel):
    for target in panel["targets"]:
        assert not list(complaints(target["expr"])), target["expr"]
        labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        tree = promql_parser.parse(variables_filled(target["expr"]))
        kept = {label for node in parts(tree) for label in grouping(node)}
        assert labels <= kept, "a legend names a label that the query drops"


@pytest.mark.parametrize(
    "expression, complaint",
    [
        ("sidelens_requests", "no metric sidelens_requests"),
        ("sidelens_decode_seconds", "no metric sidelens_decode_seconds"),
        ('sidelens_cache_misses_total{tier="redis"}', "has no label tier"),
        ('rate(sidelens_requests_total{status=~"429|418"}[5m])', "status is never 418"),
        ("sum by (modality) (rate(sidelens_fetches_total[5m]))", "nothing has the label modality"),
        ('max_over_time((sum(sidelens_gone))[1h:1m])', "no metric sidelens_gone"),
        ("vector(1) * on (pod) absent(sidelens_gone)", "no metric sidelens_gone"),
    ],
)
def test_wrong_names_are_found(expression, complaint):
    assert complaint in "; ".join(complaints(expression))


def test_alerts_lead_to_the_runbook():
    text = (ROOT / "docs/runbook.md").read_text()
    chapters = re.findall(r"^## (Sidelens\w+)$", text, re.M)
    assert sorted(set(chapters)) == sorted({alert["alert"] for alert in ALERTS}) and len(set(chapters)) == len(chapters)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        address, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert address.endswith("/docs/runbook.md") and anchor == alert["alert"].lower()


def test_the_runbook_names_what_there_is():
    text = (ROOT / "docs/runbook.md").read_text()
    names = {re.sub("_(sum|count|bucket)$", "", name) for name in METRICS} | METRICS.keys()
    assert set(re.findall(r"\bsidelens_[a-z_]+", text)) <= names
    settings = (ROOT / "config/default.toml").read_text()
    tables = set(re.findall(r"^\[([\w.]+)\]", settings, re.M))
    for table, key in re.findall(r"`((?:\w+\.)*\w+)\.(\w+)`", text):
        if table in tables:
            assert re.search(rf"^\[{re.escape(table)}\]\n(?:(?!\[).*\n)*{key} = ", settings, re.M), f"{table}.{key}"


def test_the_runbook_may_be_elsewhere(render):
    values = {"metrics": {"rules": {"enabled": True, "runbook": "https://wiki.example.com/sidelens"}, "scrapedOtherwise": True}}
    [own] = [rule for rule in of_kind(render(values)[0], "PrometheusRule")]
    found = [rule["annotations"]["runbook_url"] for group in own["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(found) == len(ALERTS) and all(url.startswith("https://wiki.example.com/sidelens#sidelens") for url in found)


def test_quantiles_are_compared_with_bounds_of_buckets():
    bounds = {float(bound) for bound in re.search(r"const SECONDS: .*?=\s*\[(.*?)\];", SOURCE, re.S)[1].split(",")}
    compared = [re.search(r":p99_5m\{.*\} > ([\d.]+)", alert["expr"]) for alert in ALERTS]
    thresholds = [float(match[1]) for match in compared if match]
    assert len(thresholds) == 2 and set(thresholds) <= bounds


def test_every_alert_is_tested_both_ways():
    fires, rests = set(), set()
    for path in HERE.glob("rules*_test.yaml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("alert_rule_test", []):
                expected = case["exp_alerts"]
                fires |= {(case["alertname"], alert["exp_labels"]["severity"]) for alert in expected}
                rests |= set() if expected else {case["alertname"]}
    wanted = {(alert["alert"], alert["labels"]["severity"]) for alert in ALERTS}
    assert fires == wanted and rests == {name for name, _ in wanted}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
@pytest.mark.parametrize("path", sorted(HERE.glob("rules*_test.yaml")), ids=lambda path: path.name)
def test_promtool_takes_the_rules(path):
    files = map(str, (CHART / "files/rules").glob("*.yaml"))
    for command in (["check", "rules", *files], ["test", "rules", str(path)]):
        report = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert report.returncode == 0, report.stdout + report.stderr


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_takes_the_metrics():
    command = [BINARY, "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_settings()) as service:
        try:
            url = service.stdout.readline().removeprefix("listening on ").strip()
            with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
                found = answer.read()
        finally:
            service.kill()
    report = subprocess.run(["promtool", "check", "metrics"], input=found, capture_output=True)
    assert report.returncode == 0 and b"sidelens_ready" in found, report.stdout + report.stderr


def test_the_dashboard_is_as_generated():
    assert dashboard.PATH.read_text() == dashboard.text(), "run make chart-dashboard"
    assert dashboard.PATH.name in DASHBOARDS


@pytest.mark.parametrize("name_", DASHBOARDS)
def test_panels_are_whole_and_do_not_overlap(name_):
    board = DASHBOARDS[name_]
    taken = set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    for wanted in ("Traffic", "Lanes", "Batches", "Device", "Cache", "Sources", "Failures"):
        assert wanted in titles
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert not cells & taken and grid["x"] + grid["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert all("$namespace" in t["expr"] and "$pod" in t["expr"] for t in panel["targets"]), panel["title"]
            assert all(t["datasource"]["uid"] == "${datasource}" for t in panel["targets"]), panel["title"]
    assert [v["name"] for v in board["templating"]["list"]] == ["datasource", "namespace", "pod"]


@pytest.mark.parametrize("name_", DASHBOARDS)
def test_dashboards_fit_grafanas_types(name_):
    tools = os.environ.get("GRAFANA_TOOLS")
    if not tools:
        pytest.skip("GRAFANA_TOOLS names no folder with Grafana's types")
    command = ["node", str(HERE / "dashboard.mjs"), str(CHART / "files" / name_), tools]
    report = subprocess.run(command, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr
