"""What single values do, and the example of sidecar mode."""

import json
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

import schema
from chart import (
    BINARY, CHART, DEFAULTS, JOB, KUBES, ROOT, check, configuration, environment, leaves, objects, of_kind, pods,
    server, without_settings,
)
from render import NAMESPACE


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


def test_a_cache_on_a_claim_is_written_before_it_is_read(render):
    """By `Recreate`: a rolling update without a surge starts the next pod while the last one still stops."""
    claim = {"extraVolumes": [{"name": "own", "persistentVolumeClaim": {"claimName": "own"}}]}
    empty = {"extraVolumes": [{"name": "own", "emptyDir": {}}]}
    mount = {"extraVolumeMounts": [{"name": "own", "mountPath": "/data/"}]}
    models = {"modelCache": {"mode": "existingClaim", "existingClaim": "models", "accessModes": ["ReadWriteMany"]}}
    own = {"strategy": {"type": "RollingUpdate"}}
    for file, values, expected in [
        ("/data/vectors.parquet", {**claim, **mount}, "Recreate"),
        ("/data/vectors.parquet", {**claim, **mount, "preset": "gpu"}, "Recreate"),
        ("/data/vectors.parquet", {**empty, **mount}, "RollingUpdate"),
        ("/tmp/vectors.parquet", {**claim, **mount}, "RollingUpdate"),
        ("/var/lib/sidelens/models/vectors.parquet", models, "Recreate"),
        ("", models, "RollingUpdate"),
        ("/data/vectors.parquet", {**claim, **mount, **own}, "RollingUpdate"),
    ]:
        manifest, _ = render({"config": {"cache": {"file": file}}, **values})
        [deployment] = of_kind(manifest, "Deployment")
        assert deployment["spec"]["strategy"]["type"] == expected, (file, values)


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
    # The metrics have a listener of their own, which callers and gateways do not reach.
    assert rule_ports(policy("monitoring")["ingress"]) == [[7800], [7801]]
    assert rule_ports(policy("monitoring")["egress"]) == [[53, 53], [7800], [80, 443], [4318]]
    assert rule_ports(policy("ingress")["ingress"]) == [[7800], [7800]]
    pictures = policy("network")["egress"][2]
    assert [peer["ipBlock"]["cidr"] for peer in pictures["to"]] == ["203.0.113.0/24", "10.30.0.0/16"]
    assert rule_ports(policy("settings")["ingress"]) == [[7900]]
    private = plain["egress"][2]["to"][0]["ipBlock"]["except"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(private)


@pytest.mark.parametrize(
    "peer, address, port",
    [
        ("hub", "", 443),
        ("hub", "http://hub.internal:8080", 8080),
        ("hub", "http://hub.internal/mirror", 80),
        ("traces", "http://collector:4318", 4318),
        ("traces", "https://otlp.vendor.example", 443),
        ("traces", "http://[fd00::1]/v2", 80),
        ("redis", "redis://cache.prod.example.com:6380/0", 6380),
        ("redis", "rediss://cache", 6379),
        ("redis", None, 6379),
    ],
)
def test_the_network_is_open_at_the_ports_that_are_asked(peer, address, port, render):
    values = {
        "hub": {"config": {"model": {"source": "org/name"}, "hub": {"endpoint": address}}, "modelCache": {"mode": "emptyDir"}},
        "traces": {"config": {"traces": {"endpoint": address}}},
        "redis": {"config": {"cache": {"redis": {"url": address}}}},
    }[peer]
    if address is None:
        values = {"secrets": {"redisUrl": {"existingSecret": "own"}}}

    def opened(policy):
        [document] = of_kind(render({**values, "networkPolicy": {"images": {"enabled": False}, **policy}})[0], "NetworkPolicy")
        return document["spec"]["egress"][-1]["ports"]

    assert opened({}) == [{"port": port, "protocol": "TCP"}]
    # The pods behind a Service may listen at another.
    assert opened({peer: {"port": 9999}}) == [{"port": 9999, "protocol": "TCP"}]


def test_the_addresses_of_identities_can_be_opened(render, rendered):
    """The rules in helm/README.md, against a policy that closes what they open."""
    [block] = re.findall(r"```yaml\n(networkPolicy:\n  extraEgress:.*?)```", (CHART / "README.md").read_text(), re.S)
    values = yaml.safe_load(block)
    manifest, _ = render(values)
    [policy], [plain] = of_kind(manifest, "NetworkPolicy"), of_kind(rendered("default"), "NetworkPolicy")
    check(policy, KUBES[-1])
    added = [rule for rule in policy["spec"]["egress"] if rule not in plain["spec"]["egress"]]
    assert added == values["networkPolicy"]["extraEgress"]
    opened = {peer["ipBlock"]["cidr"] for rule in added for peer in rule["to"]}
    assert opened == {"169.254.169.254/32", "169.254.169.252/32", "169.254.170.23/32"}


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


def test_the_test_runs_on_the_services_nodes(render):
    """Those of a GPU have a taint as a rule. Pods that the service keeps away from may be there."""
    product = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [product]}]}}
    own = {"labelSelector": {"matchLabels": {"app.kubernetes.io/name": "sidelens"}}, "topologyKey": "kubernetes.io/hostname"}
    manifest, _ = render({
        "preset": "gpu", "presets": {"gpu": {"nodeAffinity": nodes}}, "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [own]}},
    })
    [pod], [deployment] = of_kind(manifest, "Pod"), of_kind(manifest, "Deployment")
    service = deployment["spec"]["template"]["spec"]
    for part in ("nodeSelector", "tolerations"):
        assert pod["spec"][part] == service[part], part
    assert len(service["tolerations"]) == 2 and "podAntiAffinity" in service["affinity"]
    assert pod["spec"]["affinity"] == {"nodeAffinity": nodes}
    [pod] = of_kind(render()[0], "Pod")
    assert not {"nodeSelector", "tolerations", "affinity"} & pod["spec"].keys()


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
        ({"server": {"admin_listen": "0.0.0.0:7800"}}, "of config.server.listen, too"),
    ]:
        assert message in helm.ask(chart=str(chart), values={"config": config})["error"]
    buckets = [{"url": "s3://scans", "options": {"skip_signature": "true"}}]
    config = {"fetch": {"buckets": buckets}, "cache": {"redis": {"url": "redis://redis:6379/0"}}}
    manifest, _ = render({"config": config}, chart=chart)
    written = tomllib.loads(configuration(manifest))
    assert written["fetch"] == {"buckets": buckets} and written["cache"] == config["cache"]


@pytest.mark.parametrize(
    "listeners, written, ports",
    [
        ({}, "0.0.0.0:7801", {"http": 7800, "admin": 7801}),
        ({"listen": "[::]:7900"}, "[::]:7801", {"http": 7900, "admin": 7801}),
        ({"admin_listen": "0.0.0.0:9100"}, "0.0.0.0:9100", {"http": 7800, "admin": 9100}),
        ({"admin_listen": ""}, "", {"http": 7800}),
    ],
)
def test_probes_and_scrapers_share_no_connection_with_callers(listeners, written, ports, render):
    values = {"config": {"server": listeners}, "metrics": {"serviceMonitor": {"enabled": True}}}
    manifest, _ = render(values)
    assert tomllib.loads(configuration(manifest))["server"]["admin_listen"] == written
    container = server(manifest)
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    own = list(ports)[-1]
    assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")} == {own}
    [monitor] = of_kind(manifest, "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["port"] == own
    [policy] = of_kind(manifest, "NetworkPolicy")
    assert rule_ports(policy["spec"]["ingress"]) == [[ports["http"]], [ports[own]]]
    [service] = of_kind(manifest, "Service")
    assert [port["name"] for port in service["spec"]["ports"]] == list(ports)


RECORDED_ELSEWHERE = {"scrapedOtherwise": True, "rules": {"recordedOtherwise": True}}


def rules_of(manifest):
    """What stands in every PrometheusRule."""
    return [rule for own in of_kind(manifest, "PrometheusRule") for group in own["spec"]["groups"] for rule in group["rules"]]


def test_autoscaling_counts_the_replicas_alone(rendered):
    for name in ("keda", "hpa"):
        [deployment] = of_kind(rendered(name), "Deployment")
        assert "replicas" not in deployment["spec"]
    [scaled] = of_kind(rendered("keda"), "ScaledObject")
    items, shed, _ = scaled["spec"]["triggers"]
    assert items["metadata"]["threshold"] == "64" and items["metadata"]["ignoreNullValues"] == "false"
    assert scaled["spec"]["fallback"]["replicas"] == 2
    # A key at its limit has the same in every replica, so more of them would refuse just as much.
    assert '{namespace=' in shed["metadata"]["query"] and shed["metadata"]["threshold"] == "1"
    [recorded] = [rule for rule in rules_of(rendered("hpa")) if rule.get("record") == "sidelens:requests_shed:rate1m"]
    reasons = [set(re.search(r'reason=~"([\w|]+)"', query)[1].split("|")) for query in (shed["metadata"]["query"], recorded["expr"])]
    assert reasons == [{"queue_full", "deadline", "body_room"}] * 2
    [scaler] = of_kind(rendered("hpa"), "HorizontalPodAutoscaler")
    metrics = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in scaler["spec"]["metrics"]}
    assert metrics == {"sidelens_items_in_system": "12", "sidelens_requests_shed": "0.5"}


@pytest.mark.parametrize(
    "values, threshold",
    [
        ({}, "16"),
        ({"resources": {"requests": {"cpu": "16"}}}, "64"),
        ({"resources": {"requests": {"cpu": 1}, "limits": {"cpu": "2500m"}}}, "12"),
        ({"resources": {"requests": {"memory": "4Gi"}}}, "8"),
        # What computes is fewer threads than there are cores.
        ({"config": {"model": {"threads": 6}}}, "24"),
        ({"presets": {"cpu": {"itemsPerCore": 2.5}}}, "10"),
        ({"preset": "gpu"}, "64"),
        ({"preset": "gpu", "presets": {"gpu": {"count": 4}}}, "256"),
        ({"preset": "gpu", "resources": {"limits": {"nvidia.com/gpu": "2"}}}, "128"),
        ({"autoscaling": {"itemsPerReplica": 7.5}}, "7.5"),
    ],
    ids=json.dumps,
)
def test_a_larger_replica_bears_more_items(values, threshold, render):
    scaling = {"keda": {"enabled": True}, **values.get("autoscaling", {})}
    [scaled] = of_kind(render({**values, "metrics": RECORDED_ELSEWHERE, "autoscaling": scaling})[0], "ScaledObject")
    assert scaled["spec"]["triggers"][0]["metadata"]["threshold"] == threshold


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
    assert set(served.values()) <= {rule.get("record") for rule in rules_of(rendered("hpa"))}


def test_a_prometheus_without_monitors_reaches_the_metrics(render):
    manifest, _ = render({"autoscaling": {"keda": {"enabled": True}}, "metrics": {"scrapedOtherwise": True}})
    [policy] = of_kind(manifest, "NetworkPolicy")
    assert rule_ports(policy["spec"]["ingress"]) == [[7800], [7801]] and of_kind(manifest, "ScaledObject")


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


def test_nearer_labels_win_over_common_ones(render):
    values = {"commonLabels": {"team": "search", "tier": "a"}, "podLabels": {"tier": "b"}, "service": {"labels": {"tier": "c"}}}
    manifest, _ = render(values)
    [deployment], [service] = of_kind(manifest, "Deployment"), of_kind(manifest, "Service")
    metadata = [deployment["metadata"], deployment["spec"]["template"]["metadata"], service["metadata"]]
    assert [labels["labels"]["tier"] for labels in metadata] == ["a", "b", "c"]
    assert all(labels["labels"]["team"] == "search" for labels in metadata)


@pytest.mark.parametrize("seconds, tries", [(5, 60), (7, 43), (299, 2), (400, 1)])
def test_a_start_has_its_time_however_it_is_probed(seconds, tries, render):
    manifest, _ = render({"probes": {"startup": {"periodSeconds": seconds}}})
    assert server(manifest)["startupProbe"]["failureThreshold"] == tries


def test_names_stay_within_limits(render):
    manifest, _ = render({"fullnameOverride": "n" * 60, "metrics": {"rules": {"enabled": True}, "scrapedOtherwise": True}})
    for document in objects(manifest):
        assert len(document["metadata"]["name"]) <= 63


# PromQL.


def expressions(manifest):
    yield from (rule["expr"] for rule in rules_of(manifest))
    for scaled in of_kind(manifest, "ScaledObject"):
        triggers = scaled["spec"]["triggers"]
        yield from (t["metadata"]["query"] for t in triggers if t["type"] == "prometheus")


@pytest.mark.parametrize("name_", ["monitoring", "keda"])
def test_queries_parse_and_name_metrics_that_exist(name_, rendered):
    import promql_parser

    source = (ROOT / "src/telemetry/metrics.rs").read_text()
    metrics = {f"sidelens_{id}" for id in re.findall(r'\("([a-z_]+)"[,)]', source)}
    found = list(expressions(rendered(name_)))
    assert found
    for expression in found:
        promql_parser.parse(expression)
        for metric in re.findall(r"sidelens_\w+", expression):
            assert {metric, re.sub("_(sum|count|bucket)$", "", metric)} & metrics, metric


# The example of sidecar mode.


@pytest.mark.parametrize("kube_", KUBES)
def test_the_sidecar_is_a_valid_container(kube_):
    values = yaml.safe_load((CHART / "examples/meilisearch-sidecar-values.yaml").read_text())
    spec = {"containers": values["containers"], "volumes": values["volumes"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "meilisearch"}, "spec": spec}
    check(pod, kube_)
    [sidecar] = values["containers"]
    # Meilisearch is not killed for callers that hold every connection of Sidelens.
    probed = {sidecar[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness")}
    ports = {port["name"]: port["containerPort"] for port in sidecar["ports"]}
    admin_listen = environment(sidecar)["SIDELENS_SERVER__ADMIN_LISTEN"]
    assert [f"0.0.0.0:{ports[port]}" for port in probed] == [admin_listen]
    known = dict(leaves(DEFAULTS)).keys()
    for variable in environment(sidecar):
        if variable.startswith("SIDELENS_"):
            assert variable.removeprefix("SIDELENS_").lower().replace("__", ".") in known
    assert {name for name in environment(sidecar) if "THREADS" in name or "WORKERS" in name} == {
        "SIDELENS_MODEL__THREADS", "SIDELENS_IMAGE__THREADS", "SIDELENS_SERVER__WORKERS"
    }
    # That chart sets no grace period, so it is Kubernetes' 30 seconds.
    assert int(environment(sidecar)["SIDELENS_SERVER__SHUTDOWN_TIMEOUT_S"]) + 5 < 30
