#!/usr/bin/env python3
"""Prints a bill of materials of the Linux binary and its libtorch, as CycloneDX 1.5 JSON.

Crates come from `cargo metadata`: those that end in the binary, without the ones that only build or test it. libtorch and
NVIDIA's libraries come from the pins of tools/libtorch/fetch.py; `--cuda` lists those of the CUDA image, too. The same
checkout always prints the same text.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/libtorch"))
import fetch  # noqa: E402

TARGET = "x86_64-unknown-linux-gnu"


def metadata():
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def compiled_in(nodes, root):
    """The ids of packages that are reached from `root` by ordinary dependencies."""
    found, todo = set(), [root]
    while todo:
        package = todo.pop()
        if package in found:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return found


def digests():
    """The SHA-256 of each crate, as Cargo.lock has it."""
    entry = re.compile(r'name = "(.+)"\nversion = "(.+)"\nsource = .+\nchecksum = "(.+)"')
    return {(name, version): sha for name, version, sha in entry.findall((ROOT / "Cargo.lock").read_text())}


def crate(package, sha):
    purl = f"pkg:cargo/{package['name']}@{package['version']}"
    component = {"type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"], "purl": purl}
    if package["license"]:
        component["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
    if sha:
        component["hashes"] = [{"alg": "SHA-256", "content": sha}]
    return component


def wheel(requirement, sha):
    name, version = requirement.split("==")
    purl = f"pkg:pypi/{name}@{version}"
    hashes = [{"alg": "SHA-256", "content": sha}]
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "hashes": hashes}


def packages():
    """Ours, and the crates that are compiled into it."""
    answer = metadata()
    nodes = {node["id"]: node for node in answer["resolve"]["nodes"]}
    root = answer["resolve"]["root"]
    ids = compiled_in(nodes, root)
    found = {package["id"]: package for package in answer["packages"] if package["id"] in ids}
    return found.pop(root), list(found.values())


def main():
    ours, crates = packages()
    sha = digests()
    wheels = {(w[0], w[1]) for w in fetch.WHEELS + (fetch.CUDA_WHEELS if "--cuda" in sys.argv else [])}
    components = [crate(p, sha.get((p["name"], p["version"]))) for p in crates]
    components += [wheel(*w) for w in wheels]
    subject = crate(ours, None) | {"type": "application"}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": subject},
        "components": sorted(components, key=lambda component: component["bom-ref"]),
    }
    print(json.dumps(bill, indent=1))


if __name__ == "__main__":
    main()
