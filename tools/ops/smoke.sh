#!/usr/bin/env bash
# Runs an image locked down as production does, asks it for the vectors of two texts and a picture, and stops it:
# `smoke.sh IMAGE`. CONTAINER is docker (default) or podman, PORT one that is free here. Needs curl and python3.
set -euo pipefail
cd "$(dirname "$0")/../.."

image=$1
engine=${CONTAINER:-docker}
address=127.0.0.1:${PORT:-17800}
name=sidelens-smoke-$$

fail() {
  echo "$*" >&2
  exit 1
}

# The image's own health check. Docker runs it by itself; podman leaves the timer to systemd, which need not be there.
healthy() {
  case ${engine##*/} in
    podman) "$engine" healthcheck run "$name" >/dev/null 2>&1 ;;
    *) [ "$("$engine" inspect --format '{{.State.Health.Status}}' "$name")" = healthy ] ;;
  esac
}

user=$("$engine" image inspect --format '{{.Config.User}}' "$image")
[ "$user" = 65532:65532 ] || fail "the image runs as \`$user\`"
echo "$image: $(($("$engine" image inspect --format '{{.Size}}' "$image") >> 20)) MiB"

trap '"$engine" rm --force "$name" >/dev/null' EXIT
"$engine" run --detach --name "$name" --pull never --publish "$address:7800" --env SIDELENS_LOG__FORMAT=json \
  --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --memory 2g "$image" >/dev/null

for ((second = 0; ; second++)); do
  if healthy; then break; fi
  if ((second == 120)) || [ "$("$engine" inspect --format '{{.State.Running}}' "$name")" != true ]; then
    "$engine" logs "$name" >&2
    fail "it does not become healthy"
  fi
  sleep 1
done
echo "healthy in the second $((second + 1))"

curl --silent --show-error --fail --output /dev/null "http://$address/health"
# The picture shows what the first text says.
printf '{"input": ["a large red tree with polka dots", "two yellow suns", {"image": "data:image/jpeg;base64,%s"}]}' \
  "$(base64 --wrap 0 examples/catalogue/0042.jpg)" |
  curl --silent --show-error --fail "http://$address/embed" --data @- |
  python3 -c '
import json, math, sys
text, other, picture = vectors = [item["embedding"] for item in json.load(sys.stdin)["data"]]
assert len(text) == len(other) == len(picture), [len(vector) for vector in vectors]
assert all(abs(math.hypot(*vector) - 1) < 1e-3 for vector in vectors), vectors
near, far = (sum(a * b for a, b in zip(one, picture)) for one in (text, other))
assert near > far, (near, far)
print(f"{len(text)} dimensions; the picture is {near:.2f} like its text, {far:.2f} like another")'
echo "memory: $("$engine" stats --no-stream --format '{{.MemUsage}}' "$name")"

begin=$SECONDS
"$engine" stop --time 40 "$name" >/dev/null
status=$("$engine" inspect --format '{{.State.ExitCode}}' "$name")
[ "$status" = 0 ] || fail "it stopped with status $status"
echo "stopped within $((SECONDS - begin + 1)) s"
# The log is on stderr; on stdout there is one line for people, the address.
"$engine" logs "$name" 2>&1 >/dev/null | python3 -c '
import json, sys
messages = [json.loads(line)["message"] for line in sys.stdin]
assert "ready" in messages and "SIGTERM" in messages[-1], messages
print("log of", len(messages), "lines, each of them JSON")'
