#!/usr/bin/env bash
# Runs an image locked down as production does, and asks it for a vector: `smoke.sh IMAGE`. CONTAINER is docker (default)
# or podman. Needs curl and python3.
set -euo pipefail

image=$1
engine=${CONTAINER:-docker}
address=127.0.0.1:${PORT:-17800}
name=sidelens-smoke-$$

user=$("$engine" image inspect --format '{{.Config.User}}' "$image")
[ "$user" = 65532:65532 ] || { echo "the image runs as \`$user\`" >&2; exit 1; }
echo "$image: $(($("$engine" image inspect --format '{{.Size}}' "$image") >> 20)) MiB" >&2

trap '"$engine" rm --force "$name" >/dev/null' EXIT
"$engine" run --detach --name "$name" --network host --env SIDELENS_SERVER__LISTEN="$address" \
  --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --memory 2g "$image" >/dev/null

for ((second = 0; ; second++)); do
  # The image's own health check, without the engine's timer, which podman leaves to systemd.
  if "$engine" exec "$name" sidelens healthcheck; then break; fi
  if ((second == 120)) || [ "$("$engine" inspect --format '{{.State.Running}}' "$name")" != true ]; then
    "$engine" logs "$name" >&2
    exit 1
  fi
  sleep 1
done

curl --silent --show-error --fail "http://$address/embed" --data '{"input": ["a red rocket", "two yellow suns"]}' |
  python3 -c '
import json, math, sys
vectors = [item["embedding"] for item in json.load(sys.stdin)["data"]]
assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]), vectors
assert all(abs(math.hypot(*vector) - 1) < 1e-3 for vector in vectors), vectors
print(len(vectors), "vectors of", len(vectors[0]), "dimensions", file=sys.stderr)'

"$engine" stop --time 40 "$name" >/dev/null
status=$("$engine" inspect --format '{{.State.ExitCode}}' "$name")
[ "$status" = 0 ] || { echo "it stopped with status $status" >&2; exit 1; }
