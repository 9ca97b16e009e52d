"""Where things are, and small helpers of the tests."""

import functools
import json
import os
import tomllib
from importlib import resources
from pathlib import Path

import jsonschema
import yaml
from kubernetes_validate.utils import all_versions
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
CI = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
# The oldest that the chart takes, one in the middle, the newest that there are schemas of.
KUBES = ["1.25", "1.31", "1.37"]
DEFAULTS = tomllib.loads((ROOT / "config/default.toml").read_text())
# Settings that the chart writes and that this version of Sidelens does not have yet.
PENDING = set()
# Bulk work with as little as it needs.
JOB = {"enabled": True, "input": "/list.txt", "output": "s3://vectors/all"}


# An installed Sidelens, which the tests then ask.
BINARY = os.environ.get("CHART_SIDELENS", "")


@functools.cache
def definitions(kube):
    """The folder with the schemas of a version of Kubernetes, without unknown keys, and what they refer to."""
    version = [version for version in all_versions() if version.rsplit(".", 1)[0] == kube][-1]
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    shared = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    return folder, (shared @ Registry()).crawl()


@functools.cache
def validator(api_version, kind, kube):
    folder, registry = definitions(kube)
    group, _, version = api_version.rpartition("/")
    prefix = f"{group.partition('.')[0]}-" if group else ""
    schema = json.loads((folder / f"{kind.lower()}-{prefix}{version}.json").read_text())
    own = Resource.from_contents(schema)
    return jsonschema.Draft202012Validator(schema, registry=own @ registry)


def check(document, kube):
    """Raises unless a Kubernetes object is valid. As kubernetes_validate does, which reads its schemas each time."""
    validator(document["apiVersion"], document["kind"], kube).validate(document)


def without_settings():
    """The environment without settings of Sidelens."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SIDELENS_")}


class Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: a key given twice is an error, not the last one's."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, f"a key twice: {sorted(map(str, keys))}", node.start_mark)
        return super().construct_mapping(node, deep)


def objects(manifest):
    return [document for document in yaml.load_all(manifest, Loader) if document]


def of_kind(manifest, kind):
    return [document for document in objects(manifest) if document["kind"] == kind]


def pods(manifest):
    """(name, pod spec) of everything that becomes a pod."""
    for document in objects(manifest):
        if document["kind"] == "Pod":
            yield document["metadata"]["name"], document["spec"]
        elif "template" in document.get("spec", {}):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def server(manifest):
    """The container that serves."""
    [deployment] = of_kind(manifest, "Deployment")
    return next(c for c in deployment["spec"]["template"]["spec"]["containers"] if c["name"] == "sidelens")


def environment(container):
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def configuration(manifest):
    """The text of the configuration file."""
    [config] = [d for d in of_kind(manifest, "ConfigMap") if "sidelens.toml" in d["data"]]
    return config["data"]["sidelens.toml"]


def leaves(table, prefix=""):
    """Dotted paths of a nested dict's values."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
