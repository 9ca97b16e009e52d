#!/usr/bin/env python3
"""Puts libtorch (CPU parts) into a folder: `fetch.py DIR`. Needs Python 3.9 or later with pip 23 or later, nothing else.

`fetch.py --cuda DIR` puts the CUDA half into another: libtorch_cuda.so and the libraries of NVIDIA that it needs
(2.3 GB to download, 2.8 GB unpacked). A binary that has both `lib` folders on the loader's path computes on GPUs.

The parts come from wheels of the Python package index that pip is configured for, pinned by version
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

# The CUDA half, all in one folder, where the loader finds each beside the one that asks for it. Left out are
# libtorch_cuda_linalg.so and cuSOLVER (200 MB): no model here solves equations, and a TorchScript module that does says
# so before the port opens.
CUDA_WHEELS = [
    (
        WHEELS[0][0],
        WHEELS[0][1],
        [
            (f"torch/lib/{name}", "lib")
            for name in ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_nvshmem.so", "libcaffe2_nvrtc.so")
        ],
    ),
    (
        "nvidia-cublas==13.1.0.3",
        "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        [("nvidia/cu13/lib/libcublas.so.13", "lib"), ("nvidia/cu13/lib/libcublasLt.so.13", "lib")],
    ),
    (
        "nvidia-cuda-nvrtc==13.0.88",
        "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        [("nvidia/cu13/lib/libnvrtc.so.13", "lib"), ("nvidia/cu13/lib/libnvrtc-builtins.so.13.0", "lib")],
    ),
    (
        "nvidia-cudnn-cu13==9.19.0.56",
        "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
        [("nvidia/cudnn/lib/libcudnn", "lib")],
    ),
    (
        "nvidia-cufft==12.0.0.61",
        "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        [("nvidia/cu13/lib/libcufft.so.12", "lib")],
    ),
    (
        "nvidia-cufile==1.15.1.6",
        "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        [("nvidia/cu13/lib/libcufile.so.0", "lib")],
    ),
    (
        "nvidia-curand==10.4.0.35",
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        [("nvidia/cu13/lib/libcurand.so.10", "lib")],
    ),
    (
        "nvidia-cusparse==12.6.3.3",
        "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        [("nvidia/cu13/lib/libcusparse.so.12", "lib")],
    ),
    (
        "nvidia-cusparselt-cu13==0.8.0",
        "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
        [("nvidia/cusparselt/lib/libcusparseLt.so.0", "lib")],
    ),
    (
        "nvidia-nccl-cu13==2.28.9",
        "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
        [("nvidia/nccl/lib/libnccl.so.2", "lib")],
    ),
    (
        "nvidia-nvjitlink==13.0.88",
        "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        [("nvidia/cu13/lib/libnvJitLink.so.13", "lib")],
    ),
    (
        "nvidia-nvshmem-cu13==3.4.5",
        "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        [("nvidia/nvshmem/lib/libnvshmem_host.so.3", "lib")],
    ),
]

# The wheel that the torch digest belongs to; any CPython's would do, one is pinned.
PLATFORM = [
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_27_x86_64",
    "--platform=manylinux_2_25_x86_64",
    "--platform=manylinux_2_18_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
]

ATTEMPTS = 8
# The first whose report tells digests by their names.
MIN_PIP = 23


def check_pip():
    try:
        from pip import __version__ as version
    except ImportError:
        version = "none"
    if version == "none" or int(version.split(".")[0]) < MIN_PIP:
        sys.exit(
            f"fetching libtorch needs pip {MIN_PIP} or later, and that of {sys.executable} is {version}; "
            "`python3 -m pip install --upgrade pip` brings one"
        )


def wheel_urls(requirements):
    """Asks pip where the wheels lie: {sha256: url}. pip's own index, proxy and certificate settings apply."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--target", "unused", "--report", "-", *PLATFORM, *requirements]
    asked = subprocess.run(command, stdout=subprocess.PIPE)
    if asked.returncode:
        sys.exit("pip does not know where libtorch's wheels lie, as it says above; its index and proxy are pip's own settings")
    infos = [item["download_info"] for item in json.loads(asked.stdout)["install"]]
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
        # Whoever passes the libraries on has to pass these on, too.
        for name in names:
            package, _, inside = name.partition(".dist-info/")
            if inside and ("license" in inside.lower() or "notice" in inside.lower()) and not name.endswith("/"):
                path = folder / "licenses" / package / Path(inside).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))


def main():
    cuda = sys.argv[1:2] == ["--cuda"]
    if len(sys.argv) != 2 + cuda:
        sys.exit("usage: fetch.py [--cuda] DIR")
    folder = Path(sys.argv[-1]).resolve()
    parts = CUDA_WHEELS if cuda else WHEELS
    if (folder / "build-version").is_file():
        if (folder / "build-version").read_text().strip() == VERSION:
            return
        print(f"{folder} holds another version; replacing it by {VERSION}", file=sys.stderr)
        shutil.rmtree(folder)

    wheels = folder.with_name("wheels")
    missing = [w for w in parts if not (wheels / f"{w[1]}.whl").is_file()]
    if missing:
        check_pip()
        wheels.mkdir(parents=True, exist_ok=True)
        print(f"libtorch {VERSION}: fetching {', '.join(w[0] for w in missing)}", file=sys.stderr)
        urls = wheel_urls([w[0] for w in missing])
        for requirement, digest, _ in missing:
            if digest not in urls:
                sys.exit(f"the package index offers another file for {requirement} than the one pinned here")
            download(requirement, urls[digest], wheels / f"{digest}.whl", digest)

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for _, digest, wanted in parts:
        unpack(wheels / f"{digest}.whl", wanted, unfinished)
    (unfinished / "build-version").write_text(VERSION + "\n")
    unfinished.rename(folder)
    shutil.rmtree(wheels)
    print(f"libtorch {VERSION} is in {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
