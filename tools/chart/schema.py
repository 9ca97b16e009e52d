"""Writes helm/values.schema.json and the table of helm/README.md from what they describe.

    schema.py           writes both, as `make chart-schema` does
    schema.py --check   says whether they are as they would be written

Types and descriptions come from helm/values.yaml, those of `config` from config/default.toml, so that neither can
drift from its source. What a default cannot tell (which strings there are, what may be null) stands in the tables
below, and fragments.py has what is Kubernetes' own.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

import fragments

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
DEFAULTS = ROOT / "config" / "default.toml"

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
OBJECT = {"type": "object"}
WORDS = {"type": "array", "items": {"type": "string"}}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
SECONDS = {"type": "integer", "minimum": 0}
PATH = {"type": "string", "pattern": "^/."}
# Amounts such as 10Gi.
SIZE = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([kMGTPE]i?)?$"}
# Of strings alone.
SHARE = {"minimum": 0, "pattern": "^[0-9]+%$"}
DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
ACCESS_MODES = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]
REFERENCE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "kind": {"enum": ["TriggerAuthentication", "ClusterTriggerAuthentication"]}},
    "additionalProperties": False,
}
STRING = {"type": "string"}
WHOLE = {"type": "integer", "minimum": 0}
# Entries of lists of the settings, which are strings otherwise. A test holds their keys against the service's source.
ENTRIES = {
    "auth.keys": {"name": STRING, "key": STRING, "admin": {"type": "boolean"}, "max_inputs_per_s": WHOLE, "max_inputs_burst": WHOLE},
    "fetch.hosts": {"host": STRING, "headers": STRINGS, "plain_http": {"type": "boolean"}},
    "fetch.buckets": {"url": STRING, "endpoint": STRING, "region": STRING, "options": STRINGS, "through_proxy": {"type": "boolean"}},
}


def one_of(*values):
    return {"enum": list(values)}


def or_null(type_, **more):
    return {"type": [type_, "null"], **more}


# By the path in values.yaml; the last part alone counts where the whole path is not listed.
RULES = {
    "preset": one_of("cpu", "gpu"),
    "pullPolicy": one_of("Always", "IfNotPresent", "Never"),
    "image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "modelCache.mode": one_of("image", "existingClaim", "claim", "emptyDir"),
    "modelCache.accessModes": {"type": "array", "items": one_of(*ACCESS_MODES), "minItems": 1},
    "modelCache.storageClassName": or_null("string"),
    "service.type": one_of("ClusterIP", "NodePort", "LoadBalancer"),
    "service.ipFamilyPolicy": one_of("", "SingleStack", "PreferDualStack", "RequireDualStack"),
    "service.ipFamilies": {"type": "array", "items": one_of("IPv4", "IPv6"), "maxItems": 2},
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"], **SHARE},
    "podDisruptionBudget.minAvailable": {"type": ["integer", "string", "null"], **SHARE},
    "terminationGracePeriodSeconds": or_null("integer", minimum=1),
    "autoscaling.itemsPerReplica": or_null("number", exclusiveMinimum=0),
    "meilisearch.dimensions": or_null("integer", minimum=1),
    "autoscaling.shedPerSecond": {"type": "number", "minimum": 0},
    "autoscaling.keda.authenticationRef": REFERENCE,
    "ingress.paths": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {"path": PATH, "pathType": one_of("Exact", "Prefix", "ImplementationSpecific")},
            "required": ["path", "pathType"],
            "additionalProperties": False,
        },
    },
    **{f"networkPolicy.{peer}.port": or_null("integer", minimum=1, maximum=65535) for peer in ("redis", "hub", "traces")},
    "networkPolicy.images.ports": {"type": "array", "items": PORT, "minItems": 1},
    "job.shards": {"type": "integer", "minimum": 1, "maximum": 100_000},
    "job.parallelism": {"type": "integer", "minimum": 0},
    "job.retriesPerShard": {"type": "integer", "minimum": 0},
    "job.activeDeadlineSeconds": or_null("integer", minimum=1),
    "job.ttlSecondsAfterFinished": or_null("integer", minimum=0),
    "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}},
    "replicaCount": {"type": "integer", "minimum": 0},
    "count": {"type": "integer", "minimum": 1},
    "maxReplicas": {"type": "integer", "minimum": 1},
    # Without a replica there is no signal that could call for one.
    "minReplicas": {"type": "integer", "minimum": 1},
    "periodSeconds": {"type": "integer", "minimum": 1},
    "timeoutSeconds": {"type": "integer", "minimum": 1},
    "failureThreshold": {"type": "integer", "minimum": 1},
    "startupMinutes": {"type": "integer", "minimum": 1},
    "itemsPerCore": {"type": "number", "exclusiveMinimum": 0},
    "itemsPerGpu": {"type": "number", "exclusiveMinimum": 0},
    "preStopSleepSeconds": SECONDS,
    "port": PORT,
    "adminPort": PORT,
    "mountPath": PATH,
    "size": SIZE,
    "tmpSizeLimit": SIZE,
    "interval": DURATION,
    "scrapeTimeout": DURATION,
    "extraArgs": WORDS,
    "hosts": WORDS,
    "hostnames": WORDS,
    **{name: STRINGS for name in ("commonLabels", "commonAnnotations", "annotations", "labels", "podLabels")},
    **{name: STRINGS for name in ("podAnnotations", "nodeSelector")},
    **fragments.RULES,
}
# `tls` and `metrics` are lists in one place and tables of the chart in another.
TABLES = {"secrets.tls", "metrics"}


def comments(lines, marker):
    """The comment that stands above each key, by its dotted path: {path: text}."""
    found, stack, block = {}, [], []
    for line in lines:
        text = line.strip()
        if text.startswith("#"):
            block.append(text[1:].removeprefix(" "))
            continue
        match = re.match(r"( *)([A-Za-z_][\w]*):", line)
        if match:
            depth = len(match[1])
            stack = [(d, key) for d, key in stack if d < depth] + [(depth, match[2])]
            start = next((i for i, part in enumerate(block) if part.startswith(marker)), None)
            if start is not None:
                path = ".".join(key for _, key in stack)
                found[path] = " ".join(part.strip() for part in block[start:])[len(marker):].strip()
        block = []
    return found


def default_comments(text):
    """The comments of config/default.toml: {section.key: text}."""
    found, section, block = {}, "", []
    for line in text.splitlines():
        if line.startswith("#"):
            block.append(line[1:].strip())
            continue
        if match := re.match(r"\[+([\w.]+)\]+", line):
            section = match[1] + "."
        elif match := re.match(r"(\w+) *=", line):
            found[section + match[1]] = " ".join(block)
        block = []
    return found


def is_table(value):
    return isinstance(value, dict) and bool(value)


def config_schema(defaults, texts, prefix=""):
    """The schema of settings from their defaults: types, no ranges, which are Sidelens' own to check."""
    if is_table(defaults):
        properties = {key: config_schema(value, texts, f"{prefix}{key}.") for key, value in defaults.items()}
        if not prefix:
            properties["models"] = models_schema(properties)
        return {"type": "object", "properties": properties, "additionalProperties": False}
    schema = {"description": texts.get(prefix.rstrip("."), ""), "default": defaults}
    match defaults:
        case bool():
            schema["type"] = "boolean"
        case int():
            schema |= {"type": "integer", "minimum": 0}
        case float():
            schema["type"] = "number"
        case str():
            schema["type"] = "string"
        case list():
            entry = ENTRIES.get(prefix.rstrip("."))
            item = {"type": "object", "properties": entry, "additionalProperties": False} if entry else STRING
            schema |= {"type": "array", "items": item}
        case dict():
            # A table with keys of the user's choice.
            schema |= STRINGS
    return schema


def models_schema(properties):
    """`models`: each entry has the keys of [model], and those of [batch] under `batch`."""
    entry = dict(properties["model"]["properties"])
    entry["batch"] = properties["batch"]
    bare = json.loads(json.dumps({"type": "object", "properties": entry, "additionalProperties": False}))
    return properties["models"] | {"items": without(bare, {"default", "description"})}


def without(schema, keys):
    """The schema without annotations, which stand elsewhere already."""
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in keys or key in schema.get("properties", ())}
    return {key: without(value, keys) for key, value in kept.items()}


def value_schema(value, texts, path=""):
    """The schema of one value of values.yaml, from its default and the tables above."""
    name = path.rsplit(".", 1)[-1]
    rule = None if path in TABLES else RULES.get(path) or RULES.get(name)
    described = {"description": texts[path]} if path in texts else {}
    if rule is not None:
        return described | rule
    if is_table(value):
        below = {key: value_schema(part, texts, f"{path}.{key}".lstrip(".")) for key, part in value.items()}
        return described | {"type": "object", "properties": below, "additionalProperties": False}
    types = {bool: "boolean", int: "integer", float: "number", str: "string"}
    if type(value) not in types:
        raise SystemExit(f"values.yaml: the default of {path} does not tell its type; add a rule to tools/chart/schema.py")
    return described | {"type": types[type(value)]}


def schema(defaults=None):
    """The whole schema, for the settings of config/default.toml or other ones."""
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    texts = comments(text.splitlines(), "-- ")
    documented = DEFAULTS.read_text()
    config = config_schema(defaults or tomllib.loads(documented), default_comments(documented))
    config["description"] = texts["config"]
    # The templates read these, so a null must not take them away.
    config["properties"]["server"]["required"] = ["listen", "shutdown_timeout_s"]
    config["required"] = ["server"]
    whole = value_schema({key: value for key, value in values.items() if key != "config"}, texts)
    whole["properties"]["config"] = config
    # Of Helm itself, and of a chart that has this one as a part.
    whole["properties"]["global"] = OBJECT
    whole["definitions"] = fragments.kubernetes()
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the Sidelens chart"} | whole


def rows():
    """(path, default, text) of every commented value."""
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    for path, description in comments(text.splitlines(), "-- ").items():
        value = values
        for key in path.split("."):
            value = value[key]
        yield path, json.dumps(value, ensure_ascii=False), description


def table():
    def cell(text):
        return text.replace("|", "\\|")

    def default(text):
        return f"`{cell(text)}`" if len(text) <= 60 else "see values.yaml"

    lines = ["| value | default | what |", "|---|---|---|"]
    lines += [f"| `{path}` | {default(value)} | {cell(text)} |" for path, value, text in rows()]
    return "\n".join(lines)


def outputs():
    """What each generated file should hold: {path: text}."""
    readme = (CHART / "README.md").read_text()
    start, end = "<!-- values: tools/chart/schema.py -->", "<!-- end of values -->"
    before, rest = readme.split(start)
    after = rest.split(end)[1]
    return {
        CHART / "values.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
        CHART / "README.md": f"{before}{start}\n{table()}\n{end}{after}",
    }


def main():
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not up to date; run make chart-schema", file=sys.stderr)
        sys.exit(bool(stale))
    for path in stale:
        path.write_text(outputs()[path])
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
