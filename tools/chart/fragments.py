"""Schemas of what in values.yaml is not the chart's own: objects of Kubernetes, of Prometheus, KEDA and the Gateway API.

Those of Kubernetes are taken from the newest version that there are schemas of, so that a cluster older than that has
the last word on some keys. The others are written down here.
"""

import functools
import json

from chart import KUBES, definitions

# By the names of values: an object of Kubernetes, or a list of such objects.
OBJECTS = {
    "strategy": "apps.v1.DeploymentStrategy",
    "nodeAffinity": "core.v1.NodeAffinity",
    "affinity": "core.v1.Affinity",
    "podSecurityContext": "core.v1.PodSecurityContext",
    "securityContext": "core.v1.SecurityContext",
    "resources": "core.v1.ResourceRequirements",
    "behavior": "autoscaling.v2.HorizontalPodAutoscalerBehavior",
}
LISTS = {
    "imagePullSecrets": "core.v1.LocalObjectReference",
    "tolerations": "core.v1.Toleration",
    "topologySpreadConstraints": "core.v1.TopologySpreadConstraint",
    **dict.fromkeys(("from", "to", "internet"), "networking.v1.NetworkPolicyPeer"),
    "extraIngress": "networking.v1.NetworkPolicyIngressRule",
    "extraEgress": "networking.v1.NetworkPolicyEgressRule",
    "metrics": "autoscaling.v2.MetricSpec",
    "tls": "networking.v1.IngressTLS",
    "extraEnv": "core.v1.EnvVar",
    "extraEnvFrom": "core.v1.EnvFromSource",
    **dict.fromkeys(("extraVolumes", "volumes"), "core.v1.Volume"),
    **dict.fromkeys(("extraVolumeMounts", "volumeMounts"), "core.v1.VolumeMount"),
    **dict.fromkeys(("initContainers", "sidecars"), "core.v1.Container"),
}

STRING = {"type": "string"}
OPEN = {"type": "object"}


def closed(**properties):
    return {"type": "object", "properties": properties, "additionalProperties": False}


def strings(*names):
    return dict.fromkeys(names, STRING)


def each(schema):
    return {"type": "array", "items": schema}


RELABELINGS = each(
    closed(
        **strings("action", "regex", "replacement", "separator", "targetLabel"),
        sourceLabels=each(STRING),
        modulus={"type": "integer"},
    )
)
SECRET_KEY = closed(**strings("name", "key"), optional={"type": "boolean"})
SECRET_OR_CONFIG = closed(secret=SECRET_KEY, configMap=SECRET_KEY)
MATCH = each(closed(**strings("name", "type", "value")))
# By the names of values.
CUSTOM = {
    "relabelings": RELABELINGS,
    "metricRelabelings": RELABELINGS,
    "tlsConfig": closed(
        ca=SECRET_OR_CONFIG,
        cert=SECRET_OR_CONFIG,
        keySecret=SECRET_KEY,
        insecureSkipVerify={"type": "boolean"},
        **strings("serverName", "minVersion", "maxVersion"),
    ),
    "extraTriggers": each(
        closed(
            **strings("type", "name", "metricType"),
            metadata={"type": "object", "additionalProperties": STRING},
            authenticationRef=closed(**strings("name", "kind")),
            useCachedMetrics={"type": "boolean"},
        )
    ),
    "parentRefs": each(
        closed(**strings("group", "kind", "namespace", "name", "sectionName"), port={"type": "integer"})
    ),
    "matches": each(closed(path=closed(**strings("type", "value")), headers=MATCH, queryParams=MATCH, method=STRING)),
    # Each kind of filter has an object of its name, which is the API server's to read.
    "filters": each(
        closed(
            type=STRING,
            **dict.fromkeys(
                "requestHeaderModifier responseHeaderModifier requestMirror requestRedirect urlRewrite extensionRef cors "
                "externalAuth".split(),
                OPEN,
            ),
        )
    ),
}


def short(name):
    return name.removeprefix("io.k8s.api.").removeprefix("io.k8s.apimachinery.pkg.")


def reference(name):
    return {"$ref": f"#/definitions/{name}"}


# By the names of values.
RULES = {
    **{value: reference(name) for value, name in OBJECTS.items()},
    **{value: each(reference(name)) for value, name in LISTS.items()},
    **CUSTOM,
}


def bare(node):
    """A schema without annotations, which are most of its size, referring to its neighbours by their short names."""
    if isinstance(node, list):
        return [bare(part) for part in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key == "$ref":
            kept |= reference(short(value.rsplit("/", 1)[-1]))
        elif key == "properties":
            kept[key] = {name: bare(below) for name, below in value.items()}
        elif key not in ("description", "default", "format") and not key.startswith("x-kubernetes"):
            kept[key] = bare(value)
    return kept


def references(node):
    """The definitions that a schema names."""
    if isinstance(node, list):
        return {name for part in node for name in references(part)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"].rsplit("/", 1)[-1]} if isinstance(node.get("$ref"), str) else set()
    return own.union(*(references(part) for part in node.values()))


@functools.cache
def kubernetes():
    """{name: schema} of every definition that the rules lead to."""
    folder, _ = definitions(KUBES[-1])
    every = {short(name): node for name, node in json.loads((folder / "_definitions.json").read_text())["$defs"].items()}
    found, wanted = {}, references(RULES)
    while wanted:
        name = wanted.pop()
        found[name] = bare(every[name])
        wanted |= references(found[name]) - found.keys()
    return dict(sorted(found.items()))
