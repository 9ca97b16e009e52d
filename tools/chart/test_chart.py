"""Every ci values file, rendered by the real Helm: valid, deterministic, locked down, and as other tools like it."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from chart import (
    BINARY, CI, DEFAULTS, PENDING, check, configuration, environment, leaves, objects, of_kind, pods, server,
    without_settings,
)
from render import CUSTOM_KINDS, NAMESPACE

GOLDEN = Path(__file__).parent / "golden"
# Every ci values file, and for what older clusters are given instead, one on the oldest.
GOLDEN_NAMES = {**{name: (name, "1.31") for name in CI}, "job-1.25": ("job", "1.25")}


def test_every_object_fits_its_schema(name, kube, rendered):
    for document in objects(rendered(name, kube)):
        if document["apiVersion"] not in CUSTOM_KINDS:
            check(document, kube)


def test_every_object_is_named_once_and_labelled(name, kube, rendered):
    documents = objects(rendered(name, kube))
    ids = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(ids) == len(set(ids))
    for document in documents:
        if document["metadata"]["name"].endswith(("-own", "-more")):
            continue  # An object of the user's own.
        assert document["metadata"]["namespace"] == NAMESPACE
        assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "sidelens"


def test_rendering_is_deterministic(name, render, rendered):
    assert render(yaml.safe_load(CI[name].read_text()))[0] == rendered(name)


def test_every_golden_file_is_of_values():
    assert {path.stem for path in GOLDEN.iterdir()} == GOLDEN_NAMES.keys()


@pytest.mark.parametrize("golden", GOLDEN_NAMES)
def test_output_is_as_agreed(golden, render, request):
    name_, kube_ = GOLDEN_NAMES[golden]
    manifest, notes = render(yaml.safe_load(CI[name_].read_text()), kube_)
    output = f"{manifest}\n---\n# NOTES\n" + "".join(f"# {line}".rstrip() + "\n" for line in notes.splitlines())
    # A dashboard is compared with what writes it, in test_monitoring.py.
    output = re.sub(r"(\n  [\w-]+\.json: \|\n)(?:    .*\n|\n)+", r"\1    # The file.\n", output)
    path = GOLDEN / f"{golden}.yaml"
    if request.config.getoption("--update-golden"):
        path.write_text(output)
    assert path.read_text() == output, "make ops-check ARGS=--update-golden writes it anew"


def test_pods_are_locked_down(name, kube, rendered):
    own = "sidelens|(download|verify|check)-[0-9]+"
    for _, spec in pods(rendered(name, kube)):
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True and pod["seccompProfile"] == {"type": "RuntimeDefault"}
        if name != "bare":
            assert pod["runAsUser"] >= 10_000 and pod["runAsGroup"] >= 10_000
        for container in spec["containers"] + spec.get("initContainers", []):
            if not re.fullmatch(own, container["name"]):
                continue
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_probes_have_each_their_meaning(name, kube, rendered):
    container = server(rendered(name, kube))
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 300


def test_a_stop_has_the_time_that_it_needs(name, kube, rendered):
    manifest = rendered(name, kube)
    [deployment] = of_kind(manifest, "Deployment")
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    pre_stop = server(manifest).get("lifecycle", {}).get("preStop", {})
    sleep = pre_stop.get("sleep", {}).get("seconds") or int(pre_stop.get("exec", {"command": ["0"]})["command"][-1])
    drain = tomllib.loads(configuration(manifest))["server"]["shutdown_timeout_s"]
    assert grace >= sleep + drain + 5
    # Kubernetes sleeps itself from 1.30 on; before, a program of the image does.
    assert ("exec" in pre_stop) == (kube == "1.25" and sleep > 0)


def test_the_configuration_says_what_the_values_say(name, rendered):
    config = tomllib.loads(configuration(rendered(name)))
    values = yaml.safe_load(CI[name].read_text()).get("config", {})
    written = dict(leaves(config))
    for path, value in leaves(values):
        assert written[path] == value and type(written[path]) is type(value), path


def test_every_setting_exists(name, rendered):
    manifest = rendered(name)
    known = dict(leaves(DEFAULTS)).keys() | PENDING
    used = set(dict(leaves(tomllib.loads(configuration(manifest)))))
    for variable in environment(server(manifest)):
        if variable.startswith("SIDELENS_"):
            used.add(variable.removeprefix("SIDELENS_").lower().replace("__", "."))
    # Below a table with keys of the reader's own, any may stand.
    free = tuple(f"{path}." for path, value in leaves(DEFAULTS) if value == {})
    assert {path for path in used if not path.startswith(free)} <= known


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
def test_sidelens_takes_the_configuration(name, rendered, tmp_path):
    text = configuration(rendered(name))
    if any(path in PENDING for path, _ in leaves(tomllib.loads(text))):
        pytest.skip("it has a setting that is still to come")
    (tmp_path / "sidelens.toml").write_text(text)
    command = [BINARY, "config", "--config", str(tmp_path / "sidelens.toml")]
    report = subprocess.run(command, capture_output=True, text=True, env=without_settings())
    assert report.returncode == 0, report.stderr


def test_the_service_finds_the_pods_and_no_others(name, rendered):
    manifest = rendered(name)
    [service] = of_kind(manifest, "Service")
    [deployment] = of_kind(manifest, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selector = service["spec"]["selector"]
    assert selector.items() <= labels.items() and deployment["spec"]["selector"]["matchLabels"] == selector
    for pod in of_kind(manifest, "Pod"):
        assert not selector.items() <= pod["metadata"]["labels"].items()
    ports = {port["name"] for port in server(manifest)["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    for budget in of_kind(manifest, "PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"] == selector


# Tools from elsewhere.


def test_custom_resources_fit_their_definitions(rendered, tmp_path):
    tools = os.environ.get("CRD_TOOLS")
    if not tools:
        pytest.skip("CRD_TOOLS names no folder with the models of custom resources")
    documents = [d for name in CI for d in objects(rendered(name)) if d["apiVersion"] in CUSTOM_KINDS]
    assert {document["kind"] for document in documents} == {kind for kinds in CUSTOM_KINDS.values() for kind in kinds}
    (tmp_path / "custom.json").write_text(json.dumps(documents))
    command = ["node", str(Path(__file__).parent / "custom_resources.mjs"), str(tmp_path / "custom.json"), tools]
    report = subprocess.run(command, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr


def test_checkov_finds_what_is_accepted_only(rendered, tmp_path, capsys):
    checkov = os.environ.get("CHECKOV")
    if not checkov:
        pytest.skip("CHECKOV names no checkov")
    accepted = yaml.safe_load((Path(__file__).parent / "checkov-accepted.yaml").read_text())
    for name in CI:
        (tmp_path / f"{name}.yaml").write_text(rendered(name))
    command = [checkov, "--quiet", "--compact", "--skip-download", "--framework", "kubernetes", "--output", "json", "-d", str(tmp_path)]
    report = subprocess.run(command, capture_output=True, text=True)
    results = json.loads(report.stdout)["results"]["failed_checks"]
    findings = {}
    for result in results:
        findings.setdefault(Path(result["file_path"]).stem, []).append((result["check_id"], result["resource"]))
    counts = {name: len(findings.get(name, [])) for name in CI}
    with capsys.disabled():
        print(f"\ncheckov: {counts['default']} findings with default values, at most {max(counts.values())}")
    unexpected = [(name, *found) for name in findings for found in findings[name] if found[0] not in accepted]
    # What the user adds is the user's, and `bare` switches off on purpose.
    unexpected = [found for found in unexpected if found[0] not in ("extras", "bare")]
    assert not unexpected, "\n".join(map(str, unexpected))
    assert counts["default"] < 32
    used = {check for name in findings for check, _ in findings[name]}
    assert accepted.keys() <= used, "accepted, but not found any more"
