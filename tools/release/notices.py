#!/usr/bin/env python3
"""Writes into a folder what has to go with the Linux binary: `notices.py DIR`.

THIRD-PARTY.txt has the licence texts of the crates that are compiled in, and of the C inside them, as their sources in
cargo's registry have them; RUST-STANDARD-LIBRARY.html is Rust's own. Where a crate has no text, that of its licence
stands with its authors' names. libtorch brings its own. Once the crates are there, no network is asked.
"""

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import sbom

PREAMBLE = """\
What the sidelens binary is compiled from beside its own code, with the notices that ask to be passed on. This software
is based in part on the work of the Independent JPEG Group. The list of authorities (webpki-roots) is data under
CDLA-Permissive-2.0. Crates under MPL-2.0 are unchanged; their source code is at https://crates.io/crates/NAME/VERSION.
"""
NAMES = re.compile(r"(licen[cs]e|copying|copyright|notice|patents|unlicense)", re.IGNORECASE)
# Code that is called so, and what is not compiled in.
NO_TEXTS = re.compile(r"\.(rs|c|h|py|pl|sh|json|toml|html)$|^(tests?|benches|examples|fuzz)/")


def texts(package):
    """The texts in the sources of a crate, the C inside it included."""
    folder = Path(package["manifest_path"]).parent
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and NAMES.match(path.name)]
    files = [path for path in files if not NO_TEXTS.search(str(path.relative_to(folder)))]
    found = [path.read_text(errors="replace") for path in files]
    if any(path.parent == folder for path in files):
        return found
    licence = re.split(r" OR |/", package["license"] or "")
    if "Apache-2.0" in licence:
        return [*found, (sbom.ROOT / "LICENSE-APACHE").read_text()]
    if "MIT" in licence:
        authors = ", ".join(package["authors"]) or f"the authors of {package['name']}"
        ours = (sbom.ROOT / "LICENSE-MIT").read_text()
        return [*found, re.sub(r"(?m)^Copyright .*$", lambda _: f"Copyright (c) {authors}", ours)]
    sys.exit(f"{package['name']} has no licence text, and {package['license']} has none here; add it to notices.py")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: notices.py DIR")
    folder = Path(sys.argv[1])
    crates = defaultdict(list)
    for package in sbom.packages()[1]:
        for text in texts(package):
            name = f"{package['name']} {package['version']} ({package['license']})"
            crates["\n".join(line.rstrip() for line in text.strip().splitlines())].append(name)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "THIRD-PARTY.txt", "w", encoding="utf-8") as file:
        file.write(PREAMBLE)
        for text, names in sorted(crates.items(), key=lambda item: item[1]):
            file.write("\n".join(["", "=" * 100, *dict.fromkeys(names), "-" * 100, text, ""]))
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    library = Path(sysroot) / "share/doc/rust/COPYRIGHT-library.html"
    shutil.copyfile(library, folder / "RUST-STANDARD-LIBRARY.html")


if __name__ == "__main__":
    main()
