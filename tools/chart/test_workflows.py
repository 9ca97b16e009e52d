"""Workflows that run for some files only run for all that they read."""

import re
from pathlib import Path

import pytest
import yaml

from chart import ROOT

HERE = Path(__file__).parent


def uncovered(workflow, files):
    """(event, file) of the files for which a workflow does not run."""
    # PyYAML takes `on` for a boolean.
    events = yaml.safe_load((ROOT / ".github/workflows" / f"{workflow}.yml").read_text())[True]
    for event in ("pull_request", "push"):
        # As GitHub reads them: one star stays within a folder.
        patterns = [re.escape(path).replace(r"\*\*", ".*").replace(r"\*", "[^/]*") for path in events[event]["paths"]]
        for file in files:
            if not any(re.fullmatch(pattern, file) for pattern in patterns):
                yield event, file


def copied():
    """The files that the Dockerfile copies into the image."""
    text = (ROOT / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for source in sources.split():
            # What a build's arguments choose has a default in the same folder.
            path = ROOT / re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", source)
            assert path.exists(), source
            yield from (file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def read():
    """The files outside of the chart that its tests name."""
    for path in HERE.glob("*.py"):
        for name in re.findall(r'(?<!CHART / )"([\w./-]+)"', path.read_text()):
            if (ROOT / name).is_file():
                yield ROOT / name


@pytest.mark.parametrize("workflow, files", [("image", copied), ("chart", read)], ids=["image", "chart"])
def test_workflows_run_for_what_they_read(workflow, files):
    names = {path.relative_to(ROOT).as_posix() for path in files()}
    assert len(names) > 5
    assert not list(uncovered(workflow, sorted(names)))
