"""Where things are, and small helpers of the tests."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
CI = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
# The oldest that the chart takes, one in the middle, the newest that there are schemas of.
KUBES = ["1.25", "1.31", "1.37"]
DEFAULTS = tomllib.loads((ROOT / "config/default.toml").read_text())
# Settings that the chart writes and that this version of Sidelens does not have yet.
PENDING = {"auth.keys_file", "server.tls_cert", "server.tls_key", "cache.redis.url"}


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
