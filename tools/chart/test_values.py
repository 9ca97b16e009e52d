"""Values: their schema, and what is refused in one sentence."""

import json
import re
import tomllib

import pytest
import yaml

import schema
from chart import CHART, DEFAULTS, JOB, PENDING, ROOT, leaves, of_kind


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
REFUSED = {
    "config.server.listen is 127.0.0.1:7800": {"config": {"server": {"listen": "127.0.0.1:7800"}}},
    "config.server.listen is 0.0.0.0:0, but a pod needs": {"config": {"server": {"listen": "0.0.0.0:0"}}},
    "config.server.listen is 0.0.0.0:65536, but a pod needs": {"config": {"server": {"listen": "0.0.0.0:65536"}}},
    # Sidelens looks up no names.
    "config.server.listen is localhost:7800, but": {"config": {"server": {"listen": "localhost:7800"}}},
    "config.server.admin_listen is 127.0.0.1:7801": {"config": {"server": {"admin_listen": "127.0.0.1:7801"}}},
    "but config.server.listen is 0.0.0.0:7800: use [::]": {"service": {"ipFamilies": ["IPv6"]}},
    "admin_listen has the port 7801": {"config": {"server": {"listen": "0.0.0.0:7801"}}},
    "service.adminPort is 7800, as service.port is": {"service": {"adminPort": 7800}},
    "service.port is 80 and config.server.listen has the port 7800": {"service": {"clusterIP": "None", "port": 80}},
    "service.port is 7800 and config.server.listen has the port 8080": {
        "service": {"clusterIP": "None"}, "config": {"server": {"listen": "0.0.0.0:8080"}}
    },
    "config.auth.api_keys would put a secret into a ConfigMap": {"config": {"auth": {"api_keys": ["k"]}}},
    "config.hub.token would put a secret into a ConfigMap": {"config": {"hub": {"token": "k"}}},
    "config.fetch.hosts has headers for cdn.example.com": {
        "config": {"fetch": {"hosts": [{"host": "cdn.example.com", "headers": {"Authorization": "k"}}]}}
    },
    "config.fetch.proxy has a name or password": {"config": {"fetch": {"proxy": "http://me:word@proxy:3128"}}},
    "config.fetch.base_url has a name or password": {"config": {"fetch": {"base_url": "https://me:word@cdn.example.com"}}},
    "config.hub.endpoint has a name or password": {"config": {"hub": {"endpoint": "https://word@hub.example.com"}}},
    "config.traces.endpoint has a name or password": {"config": {"traces": {"endpoint": "http://me:word@collector:4318"}}},
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
    "files_root is /data2, where no volume is mounted": {**VOLUME, "config": {"fetch": {"files_root": "/data2"}}},
    # The service reads it too.
    "files_root is /data, where no volume is mounted": {
        "config": {"fetch": {"files_root": "/data"}}, "job": {**JOB, "claim": "photos"}
    },
    "terminationGracePeriodSeconds is 39": {"terminationGracePeriodSeconds": 39},
    "would both count the replicas": {"autoscaling": {"keda": {"enabled": True}, "hpa": {"enabled": True}}},
    "minReplicas is above": {"autoscaling": {"minReplicas": 9, "keda": {"enabled": True}}},
    "fallbackReplicas is above": {"autoscaling": {"maxReplicas": 1, "keda": {"enabled": True}}},
    "minAvailable is 1, which leaves none of 1 pods": {"podDisruptionBudget": {"minAvailable": 1}},
    "minAvailable is 50%, which leaves none of 1 pods": {"podDisruptionBudget": {"minAvailable": "50%"}},
    "minAvailable is 67%, which leaves none of 3 pods": {
        "replicaCount": 3, "podDisruptionBudget": {"minAvailable": "67%"}
    },
    "minAvailable is 2, which leaves none of 2 pods": {
        "podDisruptionBudget": {"minAvailable": 2}, "metrics": {"scrapedOtherwise": True},
        "autoscaling": {"keda": {"enabled": True}, "minReplicas": 2},
    },
    "minAvailable is 100%, which leaves none of 5 pods": {
        "replicaCount": 5, "podDisruptionBudget": {"minAvailable": "100%"}
    },
    "podLabels has app.kubernetes.io/component": {"podLabels": {"app.kubernetes.io/component": "vectors"}},
    "commonLabels has app.kubernetes.io/component": {"commonLabels": {"app.kubernetes.io/component": "vectors"}},
    "commonLabels has app.kubernetes.io/part-of": {"commonLabels": {"app.kubernetes.io/part-of": "shop"}},
    "service.labels has helm.sh/chart": {"service": {"labels": {"helm.sh/chart": "own"}}},
    "maxUnavailable is 0, so no node could ever be drained": {"podDisruptionBudget": {"maxUnavailable": 0}},
    "autoscaling.keda is enabled, but nothing scrapes": {"autoscaling": {"keda": {"enabled": True}}},
    "metrics.rules is enabled, but nothing scrapes": {"metrics": {"rules": {"enabled": True}}},
    "reads what metrics.rules records": {
        "autoscaling": {"hpa": {"enabled": True}}, "metrics": {"serviceMonitor": {"enabled": True}}
    },
    "metrics.interval is 60s, but autoscaling": {
        "autoscaling": {"keda": {"enabled": True}}, "metrics": {"interval": "60s", "podMonitor": {"enabled": True}}
    },
    "metrics.interval is 1m, but autoscaling": {
        "autoscaling": {"hpa": {"enabled": True}},
        "metrics": {"interval": "1m", "serviceMonitor": {"enabled": True}, "rules": {"enabled": True}},
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
    "a single address as 10.0.0.5/32": {"config": {"fetch": {"allow_networks": ["10.0.0.5"]}}},
    "a single address as fd00::5/128": {"config": {"fetch": {"allow_networks": ["fd00::5"]}}},
    "imageField is product image, which is no field's name": {"meilisearch": {"imageField": "product image"}},
    "imageField is doc.image, which is no field's name": {"meilisearch": {"imageField": "doc.image"}},
    "imageField is images[front], which is no field's name": {"meilisearch": {"imageField": "images[front]"}},
    "imageField is {{image}}, which names no field": {"meilisearch": {"imageField": "{{image}}"}},
    "textTemplate is a picture, which names no field": {"meilisearch": {"textTemplate": "a picture"}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_impossible_combinations_are_refused(message, refusal):
    text = refusal(REFUSED[message])
    assert message in text, text
    sentence = text.split("): ", 1)[-1]
    assert sentence.endswith(".") and "\n" not in sentence


# The names of object_store, with and without what they begin with.
SECRET_OPTIONS = [
    "access_key_id", "aws_secret_access_key", "secret_access_key", "session_token", "aws_token", "sse_customer_key_base64",
    "google_service_account_key", "bearer_token", "azure_storage_account_key", "access_key", "azure_storage_master_key",
    "client_secret", "sas_key", "azure_storage_sas_token", "azure_storage_token", "fabric_session_token", "encryption_key",
]
OTHER_OPTIONS = [
    "region", "skip_signature", "sse_kms_key_id", "aws_sse_bucket_key_enabled", "web_identity_token_file",
    "container_credentials_relative_uri", "container_authorization_token_file", "google_service_account",
    "application_credentials", "azure_storage_account_name", "client_id", "credential_type", "fabric_token_service_url",
]


def test_secret_options_of_buckets_are_refused(refusal, render):
    def bucket(*options):
        return {"config": {"fetch": {"buckets": [{"url": "s3://scans", "options": dict.fromkeys(options, "x")}]}}}

    for option in SECRET_OPTIONS:
        assert f"has the option {option}, a secret" in refusal(bucket(option))
    assert render(bucket(*OTHER_OPTIONS))[0]


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


def test_a_budget_leaves_a_pod_to_take_away(render, refusal):
    for budget, replicas in [({"minAvailable": "66%"}, 3), ({"minAvailable": 2}, 3), ({"minAvailable": 1}, 0)]:
        manifest, _ = render({"replicaCount": replicas, "podDisruptionBudget": budget})
        [document] = of_kind(manifest, "PodDisruptionBudget")
        assert document["spec"]["minAvailable"] == budget["minAvailable"]
    # A number in quotes is none to Kubernetes.
    assert "minAvailable" in refusal({"replicaCount": 2, "podDisruptionBudget": {"minAvailable": "1"}})


def test_an_old_kubernetes_is_refused(refusal):
    assert "kubeVersion" in refusal({}, kube="1.24")


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"cache": {"file": "/tmp/vectors.parquet"}}, "replicaCount": 2},
        {**VOLUME, "config": {"cache": {"file": "/data/vectors.parquet"}}},
        {**VOLUME, "config": {"fetch": {"files_root": "/data/photos/"}}, "replicaCount": 2},
        {"config": {"fetch": {"files_root": "/data"}}, "job": {**JOB, "claim": "photos"}, "replicaCount": 0},
    ],
    ids=json.dumps,
)
def test_files_have_a_volume(values, render):
    assert render(values)[0]
