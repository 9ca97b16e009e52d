"""panels.py PROMETHEUS [--namespace A] [--pod B] [--minutes 10] [--may-be-empty TITLE]... [DASHBOARD.json]...

Asks a live Prometheus every query of every panel, as Grafana would, and says which find nothing: no series, or nothing
but gaps (not a number). Panels of zeros are told, but are no fault. The exit status is 1 if a panel is empty.

    python3 tools/ops/panels.py http://127.0.0.1:9090 --may-be-empty 'Requests by key'
"""

import argparse
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "helm/files"
STEP = 15


def ask(server, path, **parameters):
    url = f"{server.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode()[:500]}")
    except (OSError, ValueError) as error:
        sys.exit(f"{url}: {error}")


def filled(expression, variables):
    # The longest first, so that no name is taken for a longer one's beginning.
    for name in sorted(variables, key=len, reverse=True):
        expression = expression.replace(f"${{{name}}}", variables[name]).replace(f"${name}", variables[name])
    return expression


def look(server, expression, minutes):
    """(series with numbers, largest number) over the last minutes."""
    now = time.time()
    data = ask(server, "query_range", query=expression, start=now - 60 * minutes, end=now, step=STEP)
    series = [[float(value) for _, value in found["values"]] for found in data["result"]]
    series = [[value for value in values if math.isfinite(value)] for values in series]
    series = [values for values in series if values]
    return len(series), max((max(values) for values in series), default=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("dashboards", nargs="*", type=Path)
    parser.add_argument("--namespace", default=".*")
    parser.add_argument("--pod", default=".*")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--interval", default="1m", help="what $__rate_interval becomes: four scrapes or more")
    parser.add_argument("--may-be-empty", action="append", default=[], metavar="TITLE")
    options = parser.parse_args()
    variables = {"namespace": options.namespace, "pod": options.pod, "__rate_interval": options.interval,
                 "__interval": f"{STEP}s", "__range": "1h"}
    empty, n_panels, n_queries, zeros = [], 0, 0, []
    for path in options.dashboards or sorted(FOLDER.glob("dashboard*.json")):
        row = ""
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] == "row":
                row = panel["title"]
                continue
            n_panels += 1
            for target in panel["targets"]:
                n_queries += 1
                n_series, largest = look(options.server, filled(target["expr"], variables), options.minutes)
                label = f"{row} / {panel['title']} / {target['refId']}"
                if not n_series:
                    state = "may be empty" if panel["title"] in options.may_be_empty else "EMPTY"
                    empty += [label] if state == "EMPTY" else []
                else:
                    state = f"{n_series} series, at most {largest:.4g}"
                    zeros += [label] if largest == 0 else []
                print(f"{label}: {state}")
    print(f"{n_panels} panels, {n_queries} queries, {len(empty)} empty, {len(zeros)} of zeros")
    if not n_queries:
        sys.exit("there is no panel")
    if empty:
        sys.exit("empty: " + "; ".join(empty))


if __name__ == "__main__":
    main()
