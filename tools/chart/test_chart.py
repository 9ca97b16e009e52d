"""The chart, rendered by the real Helm: valid, closed, deterministic, and what its values promise."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import schema
from chart import (
    BINARY, CHART, CI, DEFAULTS, KUBES, PENDING, ROOT, check, configuration, environment, leaves, objects, of_kind, pods,
    server, without_settings,
)
from render import CUSTOM_KINDS, NAMESPACE

GOLDEN = Path(__file__).parent / "golden"
# Every ci values file, and for what older clusters are given instead, one on the oldest.
GOLDEN_NAMES = {**{name: (name, "1.31") for name in CI}, "job-1.25": ("job", "1.25")}


# Every ci values file.


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


# Values and their schema.


def test_generated_files_are_up_to_date():
    for path, text in schema.outputs().items():
        assert path.read_text() == text, f"{path.name}: run make chart-schema"


def test_every_value_is_commented():
    text = (CHART / "values.yaml").read_text()
    commented = schema.comments(text.splitlines(), "-- ")
    for path, _ in leaves(yaml.safe_load(text)):
        parts = path.split(".")
        above = {".".join(parts[: i + 1]) for i in range(len(parts))} - {"config"}
        assert above & commented.keys(), f"{path} has no comment"


def nodes(node, path=()):
    """(path, schema) of every part of a schema; what a reference leads to stands below `definitions`."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            if key in ("properties", "definitions"):
                for name, below in value.items():
                    yield from nodes(below, (*path, name))
            elif key in ("items", "additionalProperties"):
                yield from nodes(value, (*path, "*"))
            elif key in ("oneOf", "anyOf", "allOf"):
                for below in value:
                    yield from nodes(below, path)


def test_the_schema_is_closed(refusal):
    whole = json.loads((CHART / "values.schema.json").read_text())
    # Helm's own, objects of the user's own, those of filters by their kind, and bookkeeping of the API server.
    free = {("global",), ("extraObjects", "*"), ("apis.meta.v1.FieldsV1",)}
    tables = []
    for path, node in nodes(whole):
        if "object" in str(node.get("type")) and path not in free and path[:-1] != ("httpRoute", "filters", "*"):
            assert "additionalProperties" in node, path
            if node["additionalProperties"] is False and "*" not in path and path[:1] and path[0] in whole["properties"]:
                tables.append(path)
    assert len(tables) > 40
    for path in [(), *tables]:
        wrong = {"no_such_key": 1}
        for key in reversed(path):
            wrong = {key: wrong}
        assert "no_such_key" in refusal(wrong), path


@pytest.mark.parametrize(
    "values",
    [
        {"securityContext": {"runAsUsr": 1}},
        {"podSecurityContext": {"seccompProfile": {"typ": "RuntimeDefault"}}},
        {"strategy": {"rollingUpdate": {"maxSurge": True}}},
        {"presets": {"cpu": {"tolerations": [{"kee": "a"}]}}},
        {"affinity": {"nodeAfinity": {}}},
        {"resources": {"requests": {"cpu": {}}}},
        {"networkPolicy": {"meilisearch": {"from": [{"podSelektor": {}}]}}},
        {"networkPolicy": {"extraEgress": [{"to": [{"ipBlock": {"cdir": "10.0.0.0/8"}}]}]}},
        {"autoscaling": {"behavior": {"scaleUp": {"policies": [{"kind": "Pods"}]}}}},
        {"autoscaling": {"hpa": {"metrics": [{"type": "Pods", "pod": {}}]}}},
        {"autoscaling": {"keda": {"extraTriggers": [{"type": "cron", "meta": {}}]}}},
        {"ingress": {"tls": [{"secret": "a"}]}},
        {"httpRoute": {"parentRefs": [{"gateway": "a"}]}},
        {"metrics": {"relabelings": [{"source_labels": ["a"]}]}},
        {"metrics": {"tlsConfig": {"ca": {"secrets": {}}}}},
        {"extraEnv": [{"name": "A", "valueFrom": {"secretKeyReference": {}}}]},
        {"extraVolumes": [{"name": "a", "emptydir": {}}]},
        {"sidecars": [{"name": "a", "imagePullpolicy": "Always"}]},
        {"config": {"fetch": {"hosts": [{"host": "a", "header": {}}]}}},
        {"config": {"fetch": {"allow_networks": [{}]}}},
    ],
    ids=json.dumps,
)
def test_parts_of_kubernetes_are_closed_too(values, refusal):
    assert "don't meet the specifications of the schema" in refusal(values)


@pytest.mark.parametrize(
    "path, file, struct",
    [("auth.keys", "keys", "NamedKey"), ("fetch.hosts", "fetch", "FetchHost"), ("fetch.buckets", "buckets", "BucketConfig")],
)
def test_entries_of_lists_have_the_services_keys(path, file, struct):
    source = (ROOT / f"src/config/{file}.rs").read_text()
    fields = re.search(rf"pub struct {struct} \{{(.*?)\n\}}", source, re.S)[1]
    assert schema.ENTRIES[path].keys() == set(re.findall(r"^    pub (\w+):", fields, re.M))


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"batch": {"max_batch_size": "64"}}},
        {"config": {"batch": {"max_batch_size": 0.5}}},
        {"config": {"fetch": {"allow_networks": "10.0.0.0/8"}}},
        {"config": {"models": [{"sorce": "demo"}]}},
        {"config": {"server": {"listen": 7800}}},
        {"preset": "tpu"},
        {"replicaCount": "2"},
        {"modelCache": {"mode": "nfs"}},
        {"modelCache": {"size": "10 GB"}},
        {"image": {"digest": "0123"}},
        {"terminationGracePeriodSeconds": 0},
        {"autoscaling": {"itemsPerReplica": 0}},
        {"autoscaling": {"minReplicas": 0}},
        {"resources": {"limit": {"memory": "1Gi"}}},
    ],
    ids=json.dumps,
)
def test_wrong_types_are_refused(values, refusal):
    assert "don't meet the specifications of the schema" in refusal(values)


def test_defaults_of_the_chart_are_those_of_sidelens():
    config = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    # These differ on purpose: a container is reached from outside, and its logs are read by machines.
    own = {"server.listen": "0.0.0.0:7800", "log.format": "json"}
    defaults = dict(leaves(DEFAULTS))
    assert dict(leaves(config)) == {path: own.get(path, defaults[path]) for path, _ in leaves(config)}


def test_pending_settings_are_still_to_come():
    assert not PENDING & dict(leaves(DEFAULTS)).keys(), "these have come: take them out of PENDING in tools/chart/chart.py"


def test_versions_agree():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    # The chart is released with the service, and a version of it only once.
    version = package["version"]
    assert chart["version"] == chart["appVersion"] == version
    # Where people copy it from.
    for path, pattern, n in [
        ("docker-compose.yml", r"SIDELENS_VERSION:-([\d.]+)", 3),
        ("helm/README.md", r"charts/sidelens(?: --version |:)([\d.]+)", 2),
        ("helm/examples/meilisearch-sidecar-values.yaml", r"sidelens/sidelens:([\d.]+)", 1),
    ]:
        assert re.findall(pattern, (ROOT / path).read_text()) == [version] * n, path


def test_lint_is_content(helm):
    report = helm.ask(chart=str(CHART), lint=True)
    assert "error" not in report and not report["lint"].get("Errors"), report


# What is refused, each in one sentence.

HUB = {"model": {"source": "openai/clip-vit-base-patch32"}}
CLAIM = {"mode": "claim", "accessModes": ["ReadWriteOnce"]}
VOLUME = {
    "extraVolumes": [{"name": "own", "persistentVolumeClaim": {"claimName": "own"}}],
    "extraVolumeMounts": [{"name": "own", "mountPath": "/data"}],
}
JOB = {"enabled": True, "input": "/list.txt", "output": "s3://vectors/all"}
REFUSED = {
    "config.server.listen is 127.0.0.1:7800": {"config": {"server": {"listen": "127.0.0.1:7800"}}},
    "needs a fixed port": {"config": {"server": {"listen": "0.0.0.0:0"}}},
    "use [::]:7800": {"service": {"ipFamilies": ["IPv6"]}},
    "config.auth.api_keys would put a secret into a ConfigMap": {"config": {"auth": {"api_keys": ["k"]}}},
    "config.hub.token would put a secret into a ConfigMap": {"config": {"hub": {"token": "k"}}},
    "config.fetch.hosts has headers for cdn.example.com": {
        "config": {"fetch": {"hosts": [{"host": "cdn.example.com", "headers": {"Authorization": "k"}}]}}
    },
    "config.fetch.proxy has a name or password": {"config": {"fetch": {"proxy": "http://me:word@proxy:3128"}}},
    "config.fetch.base_url has a name or password": {"config": {"fetch": {"base_url": "https://me:word@cdn.example.com"}}},
    "config.hub.endpoint has a name or password": {"config": {"hub": {"endpoint": "https://word@hub.example.com"}}},
    "with the key SIDELENS_TRACES__ENDPOINT": {"config": {"traces": {"endpoint": "http://me:word@collector:4318"}}},
    "in the endpoint of s3://scans": {
        "config": {"fetch": {"buckets": [{"url": "s3://scans", "endpoint": "http://me:word@minio:9000"}]}}
    },
    "name two files of keys": {
        "config": {"auth": {"keys_file": "/a"}}, "secrets": {"apiKeys": {"existingSecret": "own"}}
    },
    "name two certificates": {
        "config": {"server": {"tls_cert": "/a", "tls_key": "/b"}}, "secrets": {"tls": {"existingSecret": "own"}}
    },
    "name two Redis servers": {
        "config": {"cache": {"redis": {"url_file": "/a"}}}, "secrets": {"redisUrl": {"existingSecret": "own"}}
    },
    "config.traces.headers would put secrets into a ConfigMap": {"config": {"traces": {"headers": {"X-Scope": "k"}}}},
    "so the GPU would idle": {"preset": "gpu", "config": {"model": {"device": "cpu"}}},
    "a model's device is cuda:1": {"config": {"model": {"device": "cuda:1"}}},
    "a model's device is cuda,": {"config": {"models": [{"source": "demo", "device": "cuda"}]}},
    "needs the claim's name": {"modelCache": {"mode": "existingClaim"}},
    "but modelCache.mode is image": {"modelCache": {"existingClaim": "models"}},
    "there is no room for openai/clip-vit-base-patch32": {"config": HUB},
    "only an existing claim can be read-only": {"config": HUB, "modelCache": {"mode": "emptyDir", "readOnly": True}},
    "names no model of the hub": {"modelCache": {"mode": "emptyDir"}},
    "which config.hub.offline leaves empty": {"config": {**HUB, "hub": {"offline": True}}, "modelCache": {"mode": "emptyDir"}},
    "list every model in config.models": {"config": {"model": {"source": "/a"}, "models": [{"source": "/b"}]}},
    "modelCache.accessModes allow one node": {"config": HUB, "replicaCount": 2, "modelCache": CLAIM},
    "where nothing can be written": {"config": {"cache": {"file": "/data/vectors.parquet"}}},
    "each replica needs a file of its own": {**VOLUME, "replicaCount": 2, "config": {"cache": {"file": "/data/v"}}},
    "where no volume is mounted": {**VOLUME, "config": {"fetch": {"files_root": "/data2"}}},
    "terminationGracePeriodSeconds is 39": {"terminationGracePeriodSeconds": 39},
    "would both count the replicas": {"autoscaling": {"keda": {"enabled": True}, "hpa": {"enabled": True}}},
    "minReplicas is above": {"autoscaling": {"minReplicas": 9, "keda": {"enabled": True}}},
    "fallbackReplicas is above": {"autoscaling": {"maxReplicas": 1, "keda": {"enabled": True}}},
    "not below replicaCount, so no node could ever be drained": {"podDisruptionBudget": {"minAvailable": 1}},
    "minAvailable is 100%, so no node could ever be drained": {"podDisruptionBudget": {"minAvailable": "100%"}},
    "maxUnavailable is 0, so no node could ever be drained": {"podDisruptionBudget": {"maxUnavailable": 0}},
    "autoscaling.keda is enabled, but nothing scrapes": {"autoscaling": {"keda": {"enabled": True}}},
    "metrics.rules is enabled, but nothing scrapes": {"metrics": {"rules": {"enabled": True}}},
    "reads what metrics.rules records": {
        "autoscaling": {"hpa": {"enabled": True}}, "metrics": {"serviceMonitor": {"enabled": True}}
    },
    "no Prometheus can reach the metrics": {
        "config": {"server": {"admin_listen": "127.0.0.1:7801"}}, "metrics": {"podMonitor": {"enabled": True}}
    },
    "would count everything twice": {"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
    "without a host": {"ingress": {"enabled": True}},
    "without a gateway": {"httpRoute": {"enabled": True}},
    "keeps its controller out": {"ingress": {"enabled": True, "hosts": ["a.example"]}},
    "job is enabled without job.input": {"job": {"enabled": True, "output": "s3://b/a"}},
    "job is enabled without job.output": {"job": {"enabled": True, "input": "/a"}},
    "write {shard} where": {"job": {**JOB, "shards": 2}},
    "no volume is mounted that would keep it": {"job": {**JOB, "output": "/out"}},
    "neither a path such as": {"job": {**JOB, "output": "https://example.com/vectors"}},
    "the standard input": {"job": {**JOB, "input": "-"}},
    "there are pods of the job beside others": {"config": HUB, "modelCache": CLAIM, "job": JOB},
    "is the pod itself": {"config": {"fetch": {"allow_networks": ["127.0.0.0/8"]}}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_impossible_combinations_are_refused(message, refusal):
    text = refusal(REFUSED[message])
    assert message in text, text
    sentence = text.split("): ", 1)[-1]
    assert sentence.endswith(".") and "\n" not in sentence


@pytest.mark.parametrize(
    "values, needs",
    [
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "monitoring.coreos.com/v1/ServiceMonitor"),
        ({"metrics": {"podMonitor": {"enabled": True}}}, "monitoring.coreos.com/v1/PodMonitor"),
        ({"metrics": {"rules": {"enabled": True}}}, "monitoring.coreos.com/v1/PrometheusRule"),
        ({"autoscaling": {"keda": {"enabled": True}}}, "keda.sh/v1alpha1/ScaledObject"),
        ({"httpRoute": {"enabled": True}}, "gateway.networking.k8s.io/v1/HTTPRoute"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_kind_that_the_cluster_lacks_is_named(values, needs, refusal):
    assert f"the cluster has no {needs}" in refusal(values, crds=False)


def test_an_old_kubernetes_is_refused(refusal):
    assert "kubeVersion" in refusal({}, kube="1.24")


# What single values do.


def test_a_gpu_pod_never_computes_on_the_cpu(rendered):
    manifest = rendered("gpu")
    assert tomllib.loads(configuration(manifest))["model"]["device"] == "cuda"
    [deployment] = of_kind(manifest, "Deployment")
    spec = deployment["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    pod = spec["template"]["spec"]
    assert server(manifest)["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1
    assert server(manifest)["image"].endswith("-cuda") and pod["runtimeClassName"] == "nvidia"
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu", "dedicated"]
    assert "nodeAffinity" in pod["affinity"]


def test_resources_of_ones_own_keep_the_gpu(render):
    manifest, _ = render({"preset": "gpu", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}})
    assert server(manifest)["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_threads_follow_the_cpus(render, rendered):
    def sources(manifest):
        variables = environment(server(manifest))
        return {name: variables[name]["resourceFieldRef"]["resource"] for name in variables if "THREADS" in name or "WORKERS" in name}

    own = {"SIDELENS_MODEL__THREADS", "SIDELENS_IMAGE__THREADS", "SIDELENS_SERVER__WORKERS"}
    assert sources(rendered("default")) == dict.fromkeys(own, "requests.cpu")
    # A limit there, and a number of threads in the configuration.
    assert sources(rendered("settings")) == dict.fromkeys(own - {"SIDELENS_MODEL__THREADS"}, "limits.cpu")
    assert sources(render({"threadsFromCpu": False})[0]) == {}


def test_a_variable_of_ones_own_replaces_the_charts(rendered):
    variables = [v for v in server(rendered("extras"))["env"] if v["name"] == "SIDELENS_MODEL__THREADS"]
    assert variables == [{"name": "SIDELENS_MODEL__THREADS", "value": "3"}]


def test_models_are_downloaded_and_verified_first(rendered):
    manifest = rendered("models")
    [deployment] = of_kind(manifest, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    commands = [(c["name"], c["args"][:2]) for c in pod["initContainers"]]
    clip, minilm = "openai/clip-vit-base-patch32", "sentence-transformers/all-MiniLM-L6-v2"
    assert commands == [
        ("download-0", ["download", clip]), ("verify-0", ["verify", clip]),
        ("download-1", ["download", minilm]), ("verify-1", ["verify", minilm]),
    ]
    assert environment(server(manifest))["SIDELENS_HUB__OFFLINE"] == "true"
    assert all("SIDELENS_HUB__OFFLINE" not in environment(c) for c in pod["initContainers"])
    directory = tomllib.loads(configuration(manifest))["hub"]["cache_dir"]
    for container in [*pod["initContainers"], server(manifest)]:
        assert directory in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(
    "name_, expected",
    [("model-claim", (True, 1)), ("model-claim-exclusive", (True, 0)), ("model-existing-claim", (False, 1))],
)
def test_claims(name_, expected, rendered):
    makes_one, surge = expected
    manifest = rendered(name_)
    claims = of_kind(manifest, "PersistentVolumeClaim")
    assert bool(claims) == makes_one
    [deployment] = of_kind(manifest, "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == surge
    pod = deployment["spec"]["template"]["spec"]
    [volume] = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "models"]
    if makes_one:
        assert volume["claimName"] == claims[0]["metadata"]["name"]
        keeps = claims[0]["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        assert keeps == ("keep" if name_ == "model-claim" else None)
        assert claims[0]["spec"].get("storageClassName") == ("shared" if name_ == "model-claim" else None)
    else:
        assert volume == {"claimName": "models", "readOnly": True} and "initContainers" not in pod
        assert environment(server(manifest))["SIDELENS_HUB__OFFLINE"] == "true"


def test_no_secret_is_in_a_configmap(rendered):
    manifest = rendered("secrets")
    [deployment] = of_kind(manifest, "Deployment")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    mounted = {v["name"]: v["secret"]["secretName"] for v in volumes if "secret" in v}
    assert mounted == {"keys": "sidelens-keys", "hub-token": "sidelens-hub", "redis": "sidelens-redis"}
    variables = environment(server(manifest))
    assert variables["HF_TOKEN_PATH"] == "/etc/sidelens/hub-token/hf"
    config = tomllib.loads(configuration(manifest))
    assert config["auth"] == {"keys_file": "/etc/sidelens/keys/keys.toml"}
    assert config["cache"] == {"redis": {"url_file": "/etc/sidelens/redis/url"}}
    assert server(manifest)["envFrom"] == [{"secretRef": {"name": "sidelens-settings"}}]
    # The init containers have no use for them, nor has the test.
    assert not any("secretKeyRef" in str(spec) for _, spec in pods(manifest))
    assert not of_kind(manifest, "Secret")


def test_the_job_has_what_the_service_has(kube, rendered):
    manifest = rendered("job", kube)
    [job], [deployment] = of_kind(manifest, "Job"), of_kind(manifest, "Deployment")
    ours, theirs = job["spec"]["template"]["spec"], deployment["spec"]["template"]["spec"]
    for part in ("initContainers", "securityContext", "serviceAccountName", "tolerations"):
        assert ours[part] == theirs[part], part
    [container], service = ours["containers"], server(manifest)
    assert {key: container[key] for key in ("image", "securityContext", "env")} == {
        key: service[key] for key in ("image", "securityContext", "env")
    }
    # The keys of callers are the service's alone.
    names = {volume["name"] for volume in ours["volumes"]}
    assert names == {"config", "tmp", "models", "hub-token", "redis", "job"}
    assert {mount["name"] for mount in container["volumeMounts"]} == names
    assert container["resources"]["requests"]["cpu"] == "12" and container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert ours["restartPolicy"] == "Never" and ours["terminationGracePeriodSeconds"] == 90
    # The network policy holds for its pods, and the Service does not send to them.
    labels = job["spec"]["template"]["metadata"]["labels"]
    [policy], [service_] = of_kind(manifest, "NetworkPolicy"), of_kind(manifest, "Service")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert not service_["spec"]["selector"].items() <= labels.items()


def test_shards_are_counted_as_the_cluster_can(kube, rendered):
    [job] = of_kind(rendered("job", kube), "Job")
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 16, 4)
    [container] = spec["template"]["spec"]["containers"]
    assert "--shard=$(JOB_COMPLETION_INDEX)/16" in container["args"] and container["args"][-1] == "--max-failed=20"
    # A pod's host name has the index behind the Job's.
    assert len(f"{job['metadata']['name']}-99999") <= 63
    actions = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in spec.get("podFailurePolicy", {}).get("rules", [])]
    if kube == "1.25":
        assert spec["backoffLimit"] == 48 and not actions
    else:
        assert spec["backoffLimitPerIndex"] == 3 and "backoffLimit" not in spec
        assert actions == [("Ignore", [75]), ("Ignore", None), ("FailIndex", [65])]


def test_another_job_has_another_name(render):
    def name(**more):
        [job] = of_kind(render({"job": {**JOB, **more}})[0], "Job")
        return job["metadata"]["name"]

    assert name() == name() and name() != name(parallelism=2)


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
def test_sidelens_takes_the_arguments_of_the_job(rendered, tmp_path):
    manifest = rendered("job-bucket")
    (tmp_path / "sidelens.toml").write_text(configuration(manifest))
    [job] = of_kind(manifest, "Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    changes = {"$(JOB_COMPLETION_INDEX)": "0", "/etc/sidelens/config": str(tmp_path), "s3://vectors/pictures": str(tmp_path), "/list": str(tmp_path)}
    arguments = []
    for argument in container["args"]:
        for old, new in changes.items():
            argument = argument.replace(old, new)
        arguments.append(argument)
    (tmp_path / "pictures.txt").write_text("")
    report = subprocess.run([BINARY, *arguments], capture_output=True, text=True, env=without_settings())
    assert report.returncode == 0 and json.loads(report.stdout)["complete"], report.stderr


def rule_ports(rules):
    return [sorted(port["port"] for port in rule["ports"]) for rule in rules]


def test_the_network_is_open_where_needed_only(rendered):
    def policy(name):
        [document] = of_kind(rendered(name), "NetworkPolicy")
        return document["spec"]

    plain = policy("default")
    assert plain["policyTypes"] == ["Ingress", "Egress"]
    assert rule_ports(plain["ingress"]) == [[7800]]
    assert rule_ports(plain["egress"]) == [[53, 53], [7800], [80, 443]]
    assert rule_ports(policy("secrets")["egress"]) == [[53, 53], [7800], [6379], [80, 443]]
    assert rule_ports(policy("models")["egress"]) == [[53, 53], [7800], [80, 443], [443]]
    assert rule_ports(policy("monitoring")["ingress"]) == [[7800], [7800]]
    assert rule_ports(policy("monitoring")["egress"]) == [[53, 53], [7800], [80, 443], [4318]]
    assert rule_ports(policy("ingress")["ingress"]) == [[7800], [7800]]
    pictures = policy("network")["egress"][2]
    assert [peer["ipBlock"]["cidr"] for peer in pictures["to"]] == ["203.0.113.0/24", "10.30.0.0/16"]
    assert rule_ports(policy("settings")["ingress"]) == [[7900]]
    private = plain["egress"][2]["to"][0]["ipBlock"]["except"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(private)


def test_tls_reaches_every_reader(rendered):
    manifest = rendered("tls")
    container = server(manifest)
    for kind in ("startup", "liveness", "readiness"):
        assert container[f"{kind}Probe"]["httpGet"]["scheme"] == "HTTPS"
    [monitor] = of_kind(manifest, "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["scheme"] == "https"
    [service] = of_kind(manifest, "Service")
    assert service["spec"]["ports"][0]["appProtocol"] == "https"
    settings = tomllib.loads(configuration(manifest))["server"]
    mount = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "tls")
    assert settings["tls_cert"] == f"{mount}/tls.crt" and settings["tls_key"] == f"{mount}/tls.key"


def test_the_test_checks_what_meilisearch_will_get(rendered, render):
    def arguments(manifest):
        [pod] = of_kind(manifest, "Pod")
        mounts = [{m["name"]: m["mountPath"] for m in c.get("volumeMounts", [])} for c in pod["spec"]["containers"]]
        return [c["args"] for c in pod["spec"]["containers"]], mounts

    here = f"http://sidelens.{NAMESPACE}.svc:7800"
    assert arguments(rendered("default")) == ([["check", here, "--timeout-s=25"]], [{}])
    [args], [mounts] = arguments(rendered("secrets"))
    assert args[-1] == "--key-file=/etc/sidelens/test-key/key" and mounts == {"test-key": "/etc/sidelens/test-key"}
    # A name of the certificate, at the address of the Service.
    [args], [mounts] = arguments(rendered("tls"))
    assert args[1:3] == ["https://vectors.example.com:443", f"--connect=sidelens.{NAMESPACE}.svc"]
    assert args[-1] == "--ca=/etc/sidelens/test-ca/ca.crt" and mounts == {"test-ca": "/etc/sidelens/test-ca"}
    tls = {"secrets": {"tls": {"existingSecret": "own"}}, "meilisearch": {"dimensions": 512}}
    assert arguments(render(tls)[0])[0] == [["check", here.replace("http", "https"), "--timeout-s=25", "--dimensions=512"]]
    every, _ = arguments(rendered("models"))
    assert [args[3:] for args in every] == [[], ["--model=texts"], ["--model=drawings"]]
    # Without a key to ask with there is none.
    keys = {"secrets": {"apiKeys": {"existingSecret": "own"}}}
    assert not of_kind(render(keys)[0], "Pod")


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
def test_sidelens_takes_the_arguments_of_the_test(name, rendered):
    for pod in of_kind(rendered(name), "Pod"):
        for container in pod["spec"]["containers"]:
            report = subprocess.run([BINARY, *container["args"], "--help"], capture_output=True, text=True)
            assert report.returncode == 0, report.stderr
            # `--help` ends the parsing: the flags themselves are looked up.
            for argument in container["args"][2:]:
                assert argument.partition("=")[0] in report.stdout


def test_settings_to_come_need_the_schema_alone(helm, render, tmp_path):
    chart = tmp_path / "sidelens"
    shutil.copytree(CHART, chart)
    defaults = json.loads(json.dumps(DEFAULTS))
    defaults["server"]["admin_listen"] = ""
    defaults["fetch"]["buckets"] = []
    defaults["auth"]["keys"] = []
    defaults["cache"]["redis"] = {"url": ""}
    (chart / "values.schema.json").write_text(json.dumps(schema.schema(defaults)))
    for config, message in [
        ({"auth": {"keys": [{"name": "a", "key": "b"}]}}, "config.auth.keys would put secrets into a ConfigMap"),
        ({"cache": {"redis": {"url": "redis://:word@redis:6379"}}}, "config.cache.redis.url has a password"),
        ({"fetch": {"buckets": [{"url": "s3://a", "options": {"secret_access_key": "b"}}]}}, "has the option secret_"),
        ({"server": {"admin_listen": "0.0.0.0:7800"}}, "has the port of config.server.listen"),
    ]:
        assert message in helm.ask(chart=str(chart), values={"config": config})["error"]
    buckets = [{"url": "s3://scans", "options": {"skip_signature": "true"}}]
    config = {"server": {"admin_listen": "0.0.0.0:7801"}, "fetch": {"buckets": buckets}}
    config["cache"] = {"redis": {"url": "redis://redis:6379/0"}}
    manifest, _ = render({"config": config, "metrics": {"serviceMonitor": {"enabled": True}}}, chart=chart)
    written = tomllib.loads(configuration(manifest))
    assert written["fetch"] == {"buckets": buckets} and written["cache"] == config["cache"]
    # The metrics have left the first address, and every reader follows.
    assert [port["containerPort"] for port in server(manifest)["ports"]] == [7800, 7801]
    [monitor] = of_kind(manifest, "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["port"] == "admin"
    [policy] = of_kind(manifest, "NetworkPolicy")
    assert rule_ports(policy["spec"]["ingress"]) == [[7800], [7801]]
    [service] = of_kind(manifest, "Service")
    assert [port["name"] for port in service["spec"]["ports"]] == ["http", "admin"]


RECORDED_ELSEWHERE = {"scrapedOtherwise": True, "rules": {"recordedOtherwise": True}}


def test_autoscaling_counts_the_replicas_alone(rendered):
    for name in ("keda", "hpa"):
        [deployment] = of_kind(rendered(name), "Deployment")
        assert "replicas" not in deployment["spec"]
    [scaled] = of_kind(rendered("keda"), "ScaledObject")
    items, shed, _ = scaled["spec"]["triggers"]
    assert items["metadata"]["threshold"] == "64" and items["metadata"]["ignoreNullValues"] == "false"
    assert scaled["spec"]["fallback"]["replicas"] == 2
    assert 'status=~"429|503"' in shed["metadata"]["query"] and shed["metadata"]["threshold"] == "1"
    [scaler] = of_kind(rendered("hpa"), "HorizontalPodAutoscaler")
    metrics = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in scaler["spec"]["metrics"]}
    assert metrics == {"sidelens_items_in_system": "12", "sidelens_requests_shed": "0.5"}


def test_refusals_may_be_no_trigger(render):
    values = {"shedPerSecond": 0, "hpa": {"enabled": True}}
    [scaler] = of_kind(render({"autoscaling": values, "metrics": RECORDED_ELSEWHERE})[0], "HorizontalPodAutoscaler")
    assert [m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"]] == ["sidelens_items_in_system"]
    values = {"shedPerSecond": 0, "keda": {"enabled": True}}
    [scaled] = of_kind(render({"autoscaling": values, "metrics": RECORDED_ELSEWHERE})[0], "ScaledObject")
    assert [t["name"] for t in scaled["spec"]["triggers"]] == ["items-in-system"]


def test_the_adapter_serves_what_the_scaler_asks_for(rendered):
    """The configuration of prometheus-adapter in helm/README.md against rules and HorizontalPodAutoscaler."""
    [block] = re.findall(r"```yaml\n(rules:\n.*?)```", (CHART / "README.md").read_text(), re.S)
    served = {rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in yaml.safe_load(block)["rules"]["custom"]}
    [scaler] = of_kind(rendered("hpa"), "HorizontalPodAutoscaler")
    assert served.keys() == {m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"]}
    rules = [r for o in of_kind(rendered("hpa"), "PrometheusRule") for g in o["spec"]["groups"] for r in g["rules"]]
    assert set(served.values()) <= {rule.get("record") for rule in rules}


def test_a_prometheus_without_monitors_reaches_the_metrics(render):
    manifest, _ = render({"autoscaling": {"keda": {"enabled": True}}, "metrics": {"scrapedOtherwise": True}})
    [policy] = of_kind(manifest, "NetworkPolicy")
    assert rule_ports(policy["spec"]["ingress"]) == [[7800], [7800]] and of_kind(manifest, "ScaledObject")


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"cache": {"file": "/tmp/vectors.parquet"}}, "replicaCount": 2},
        {**VOLUME, "config": {"cache": {"file": "/data/vectors.parquet"}}},
        {**VOLUME, "config": {"fetch": {"files_root": "/data/photos/"}}, "replicaCount": 2},
        {"config": {"fetch": {"files_root": "/data"}}, "job": {**JOB, "claim": "photos"}},
    ],
    ids=json.dumps,
)
def test_files_have_a_volume(values, render):
    assert render(values)[0]


def test_rules_and_dashboards_come_from_files(render, tmp_path):
    chart = tmp_path / "sidelens"
    shutil.copytree(CHART, chart)
    rules = {"groups": [{"name": "more", "rules": [{"alert": "A", "expr": "up == 0", "annotations": {"a": "{{ $value }}"}}]}]}
    (chart / "files/rules/more.yaml").write_text(yaml.safe_dump(rules))
    dashboard = {"title": "{{ not a template }}", "panels": []}
    (chart / "files/dashboard-one.json").write_text(json.dumps(dashboard, indent=2))
    metrics = {"rules": {"enabled": True}, "dashboards": {"enabled": True}, "scrapedOtherwise": True}
    manifest, _ = render({"metrics": metrics}, chart=chart)
    found = {rule["metadata"]["name"]: rule["spec"] for rule in of_kind(manifest, "PrometheusRule")}
    assert found["sidelens-more"] == rules and len(found) == len(list((chart / "files/rules").glob("*.yaml")))
    [config] = [d for d in of_kind(manifest, "ConfigMap") if d["metadata"]["name"] == "sidelens-dashboard-one"]
    assert json.loads(config["data"]["sidelens-dashboard-one.json"]) == dashboard
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_names_stay_within_limits(render):
    manifest, _ = render({"fullnameOverride": "n" * 60, "metrics": {"rules": {"enabled": True}, "scrapedOtherwise": True}})
    for document in objects(manifest):
        assert len(document["metadata"]["name"]) <= 63


# PromQL.


def expressions(manifest):
    for rule in of_kind(manifest, "PrometheusRule"):
        for group in rule["spec"]["groups"]:
            yield from (entry["expr"] for entry in group["rules"])
    for scaled in of_kind(manifest, "ScaledObject"):
        triggers = scaled["spec"]["triggers"]
        yield from (t["metadata"]["query"] for t in triggers if t["type"] == "prometheus")


@pytest.mark.parametrize("name_", ["monitoring", "keda"])
def test_queries_parse_and_name_metrics_that_exist(name_, rendered):
    import promql_parser

    source = (ROOT / "src/telemetry/metrics.rs").read_text()
    metrics = {f"sidelens_{id}" for id in re.findall(r'"([a-z_]+)",\s', source)}
    found = list(expressions(rendered(name_)))
    assert found
    for expression in found:
        promql_parser.parse(expression)
        for metric in re.findall(r"sidelens_\w+", expression):
            assert {metric, re.sub("_(sum|count|bucket)$", "", metric)} & metrics, metric


# The notes.


def count(value, placeholder):
    if isinstance(value, dict):
        return sum(count(part, placeholder) for part in value.values())
    if isinstance(value, list):
        return sum(count(part, placeholder) for part in value)
    return int(value == placeholder)


@pytest.mark.parametrize("name_", ["default", "model-empty-dir", "settings", "secrets"])
def test_the_notes_have_settings_that_meilisearch_takes(name_, render):
    _, notes = render(yaml.safe_load(CI[name_].read_text()))
    settings = json.loads(re.search(r"<<'SETTINGS'\n(.*?)\nSETTINGS", notes, re.S)[1])
    embedder = settings["embedders"]["sidelens"]
    assert embedder["source"] == "rest" and embedder["dimensions"] > 0
    assert embedder["url"] == f"http://sidelens.{NAMESPACE}.svc:{80 if name_ == 'settings' else 7800}/embed"
    assert count(embedder["request"], "{{fragment}}") == count(embedder["request"], "{{..}}") == 1
    assert count(embedder["response"], "{{embedding}}") == count(embedder["response"], "{{..}}") == 1
    assert embedder["indexingFragments"] and embedder["searchFragments"].keys() == {"text", "image", "url"}
    assert ("apiKey" in embedder) == (name_ == "secrets")
    assert '{"multimodal": true}' in notes


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
@pytest.mark.parametrize("fields", [{}, {"textTemplate": "{{doc.title}}"}, {"imageField": "", "textTemplate": "{{doc.title}}"}])
def test_the_notes_say_what_sidelens_says(fields, render):
    _, notes = render({"meilisearch": fields})
    settings = json.loads(re.search(r"<<'SETTINGS'\n(.*?)\nSETTINGS", notes, re.S)[1])
    # Nobody listens there, so that the facts are those of the demo model in the binary.
    command = [BINARY, "settings", "--url", "http://127.0.0.1:1"]
    wanted = {"imageField": "image", "textTemplate": ""} | fields
    command += ["--image-field", wanted["imageField"]] if wanted["imageField"] else []
    command += ["--text-template", wanted["textTemplate"]] if wanted["textTemplate"] else []
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=without_settings()).stdout)
    printed["embedders"]["sidelens"]["url"] = settings["embedders"]["sidelens"]["url"]
    assert settings == printed


def asking(notes):
    """The words behind `--` of the command that asks the service for the settings."""
    [command] = re.findall(r"^  kubectl .*? exec .*?\|$", notes, re.M | re.S)
    words = shlex.split(command.replace("\\\n", " "))
    return words[words.index("--") + 1 : words.index("|")]


def test_the_notes_ask_the_service_where_the_chart_cannot_know(render):
    fields = {"imageField": "{{doc.photo | split: '/' | last}}", "textTemplate": "{{doc.title}}, the shop's \"best\""}
    own = {"model": {"source": "/models/own"}}
    words = asking(render({"config": own, "meilisearch": fields, "extraArgs": ["--set=cache.file=/tmp/$a b"]})[1])
    assert words[:2] == ["sidelens", "settings"] and "--config=/etc/sidelens/config/sidelens.toml" in words
    assert "--set=cache.file=/tmp/$a b" in words
    for flag, value in [
        ("--url", "http://sidelens.search.svc:7800"), ("--image-field", fields["imageField"]),
        ("--text-template", fields["textTemplate"]),
    ]:
        assert words[words.index(flag) + 1] == value


@pytest.mark.skipif(not BINARY, reason="CHART_SIDELENS names no sidelens")
def test_the_service_need_not_reach_itself_to_be_asked(render, tmp_path):
    model = ROOT / "tests/fixtures/models/clip/laion"
    manifest, notes = render({"config": {"model": {"source": str(model)}}})
    (tmp_path / "sidelens.toml").write_text(configuration(manifest))
    # Nobody listens there: the policy closes the way from a pod of the service to the Service.
    changes = {"/etc/sidelens/config": str(tmp_path), "http://sidelens.search.svc:7800": "http://127.0.0.1:1"}
    command = [BINARY, *asking(notes)[1:]]
    for old, new in changes.items():
        command = [word.replace(old, new) for word in command]
    report = subprocess.run(command, capture_output=True, text=True, env=without_settings())
    assert report.returncode == 0, report.stderr
    embedder = json.loads(report.stdout)["embedders"]["sidelens"]
    assert embedder["dimensions"] == json.loads((model / "config.json").read_text())["projection_dim"]


def test_the_notes_name_the_networks_to_open(render):
    variable = "MEILI_EXPERIMENTAL_ALLOWED_IP_NETWORKS="
    for address, expected in [("", "10.0.0.0/8,"), ("10.96.7.8", "10.96.7.8/32\n"), ("fd00::8", "fd00::8/128\n")]:
        _, notes = render({"service": {"clusterIP": address}})
        assert variable + expected in notes


def test_the_notes_know_what_meilisearch_trusts(render):
    warning = "trusts certificates of public authorities only"
    tls = {"tls": {"existingSecret": "own"}}
    assert warning in render({"secrets": tls})[1]
    _, notes = render({"secrets": tls, "meilisearch": {"url": "https://vectors.example.com/"}})
    assert warning not in notes and '"url": "https://vectors.example.com/embed"' in notes


def test_the_notes_warn_of_an_open_door(render):
    warning = "no key is asked for"
    assert warning in render(yaml.safe_load(CI["http-route"].read_text()))[1]
    assert warning not in render(yaml.safe_load(CI["ingress"].read_text()))[1]


# The example of sidecar mode.


@pytest.mark.parametrize("kube_", KUBES)
def test_the_sidecar_is_a_valid_container(kube_):
    values = yaml.safe_load((CHART / "examples/meilisearch-sidecar-values.yaml").read_text())
    spec = {"containers": values["containers"], "volumes": values["volumes"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "meilisearch"}, "spec": spec}
    check(pod, kube_)
    [sidecar] = values["containers"]
    known = dict(leaves(DEFAULTS)).keys()
    for variable in environment(sidecar):
        if variable.startswith("SIDELENS_"):
            assert variable.removeprefix("SIDELENS_").lower().replace("__", ".") in known
    assert {name for name in environment(sidecar) if "THREADS" in name or "WORKERS" in name} == {
        "SIDELENS_MODEL__THREADS", "SIDELENS_IMAGE__THREADS", "SIDELENS_SERVER__WORKERS"
    }
    # That chart sets no grace period, so it is Kubernetes' 30 seconds.
    assert int(environment(sidecar)["SIDELENS_SERVER__SHUTDOWN_TIMEOUT_S"]) + 5 < 30


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
