#!/usr/bin/env python3
"""Puts libtorch (CPU parts) into a folder: `fetch.py DIR`. Needs Python 3.9 or later with pip, nothing else.

The parts come from three wheels of the Python package index that pip is configured for, pinned by version
and SHA-256. pip resolves where a wheel lies; the download itself is ours, because pip starts again from zero
when it is interrupted and one wheel is 530 MB. A finished folder is left alone, an unfinished one never
appears under its final name.

Keep VERSION in step with `tch` in Cargo.toml: each tch release wants one libtorch release.
"""

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

VERSION = "2.11.0"

# Wheel, its SHA-256, and what is taken from it: (prefix or file inside the wheel, folder here).
# libtorch_cuda.so stays out: torch-sys links to it when it sees it, and the CPU binary must not need it.
WHEELS = [
    (
        f"torch=={VERSION}",
        "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        [("torch/include/", "include")]
        + [
            (f"torch/lib/{name}", "lib")
            for name in (
                "libtorch_cpu.so",
                "libtorch.so",
                "libc10.so",
                "libgomp.so.1",
                "libshm.so",
                "libtorch_global_deps.so",
            )
        ],
    ),
    (
        "nvidia-cuda-cupti==13.0.85",
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        [("nvidia/cu13/lib/libcupti.so.13", "lib")],
    ),
    (
        "nvidia-cuda-runtime==13.0.96",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        [("nvidia/cu13/lib/libcudart.so.13", "lib")],
    ),
]

# The wheel that the torch digest belongs to; any CPython's would do, one is pinned.
PLATFORM = [
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_25_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
]

ATTEMPTS = 8


def wheel_urls(requirements):
    """Asks pip where the wheels lie: {sha256: url}. pip's own index, proxy and certificate settings apply."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--target", "unused", "--report", "-", *PLATFORM, *requirements]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    infos = [item["download_info"] for item in report["install"]]
    return {info["archive_info"]["hashes"]["sha256"]: info["url"] for info in infos}


def tls_context():
    """The certificates that pip trusts, where it was told of any."""
    return ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"))


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(name, url, path, digest):
    """Fetches `url` to `path`, going on where an earlier try stopped; the file is there only when its digest fits."""
    part = path.with_name(path.name + ".part")
    total = 0
    for attempt in range(ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=60, context=tls_context()) as answer:
                resumed = answer.status == 206
                total = int(answer.headers.get("Content-Length", 0)) + (have if resumed else 0)
                with open(part, "ab" if resumed else "wb") as file:
                    while block := answer.read(1 << 20):
                        file.write(block)
                        progress(name, file.tell(), total)
        except OSError as error:
            # 416: the part is already whole, or longer than the file; the digest decides.
            if getattr(error, "code", None) != 416:
                print(f"  {error}; trying again ({attempt + 1} of {ATTEMPTS})", file=sys.stderr)
                time.sleep(min(2**attempt, 30))
                continue
        if sys.stderr.isatty():
            print(file=sys.stderr)
        if sha256(part) == digest:
            part.rename(path)
            return
        if total and part.stat().st_size < total:
            continue
        part.unlink()
        print(f"  {name}: wrong SHA-256, starting again", file=sys.stderr)
    sys.exit(f"could not download {name} after {ATTEMPTS} tries; run the same command again to go on")


def progress(name, done, total):
    if sys.stderr.isatty():
        print(f"\r  {name}: {done >> 20} of {total >> 20} MiB", end="", file=sys.stderr)


def unpack(wheel, wanted, folder):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for prefix, target in wanted:
            found = [name for name in names if name.startswith(prefix) and not name.endswith("/")]
            if not found:
                sys.exit(f"{wheel.name} holds no {prefix}; was the pinned version changed without its parts?")
            for name in found:
                inside = name[len(prefix):] if prefix.endswith("/") else Path(name).name
                path = folder / target / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(path, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: fetch.py DIR")
    folder = Path(sys.argv[1]).resolve()
    if (folder / "build-version").is_file():
        if (folder / "build-version").read_text().strip() == VERSION:
            return
        print(f"{folder} holds another version; replacing it by {VERSION}", file=sys.stderr)
        shutil.rmtree(folder)

    wheels = folder.with_name("wheels")
    wheels.mkdir(parents=True, exist_ok=True)
    missing = [w for w in WHEELS if not (wheels / f"{w[1]}.whl").is_file()]
    if missing:
        print(f"libtorch {VERSION}: fetching {', '.join(w[0] for w in missing)}", file=sys.stderr)
        urls = wheel_urls([w[0] for w in missing])
        for requirement, digest, _ in missing:
            if digest not in urls:
                sys.exit(f"the package index offers another file for {requirement} than the one pinned here")
            download(requirement, urls[digest], wheels / f"{digest}.whl", digest)

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for _, digest, wanted in WHEELS:
        unpack(wheels / f"{digest}.whl", wanted, unfinished)
    (unfinished / "build-version").write_text(VERSION + "\n")
    unfinished.rename(folder)
    shutil.rmtree(wheels)
    print(f"libtorch {VERSION} is in {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
