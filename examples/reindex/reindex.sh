#!/usr/bin/env bash
# Builds an index anew beside the one that is searched, checks it, and swaps the two; docs/reindexing.md tells when that
# is needed. Vectors that documents bring themselves (`_vectors`) are not copied. Needs curl and jq. What it reads:
#
#   MEILISEARCH       address of Meilisearch, such as http://127.0.0.1:7700
#   MEILI_KEY         a key for it, if it has keys, with the actions that docs/reindexing.md names
#   INDEX             name of the index
#   EMBEDDER_SETTINGS file with what `sidelens settings` prints, `-` for standard input; empty: the settings as they are
#   EMBEDDER_KEY      the key that Meilisearch sends to Sidelens, if there is one and EMBEDDER_SETTINGS has none: Meilisearch
#                     never tells it again
#   MAY_LACK          documents that may be without a vector of an embedder (pictures that are gone), 0 unless given
#   PAGE              documents copied at once, 1000 unless given
set -euo pipefail

: "${MEILISEARCH:?}" "${INDEX:?}"
staging=${INDEX}_staging
page=${PAGE:-1000}

# meili METHOD PATH [BODY]; a body `@-` is standard input.
meili() {
  local arguments=(--silent --show-error --fail-with-body --request "$1" "$MEILISEARCH$2")
  [ -z "${MEILI_KEY:-}" ] || arguments+=(--header "Authorization: Bearer $MEILI_KEY")
  [ $# -lt 3 ] || arguments+=(--header 'Content-Type: application/json' --data-binary "$3")
  curl "${arguments[@]}"
}

# Waits for the end of the task that standard input announces.
finished() {
  local number task
  number=$(jq -e .taskUid)
  while task=$(meili GET "/tasks/$number"); do
    case $(jq -r .status <<<"$task") in
      succeeded) return ;;
      failed | canceled) jq .error <<<"$task" >&2 && return 1 ;;
    esac
    sleep 2
  done
  return 1
}

echo "1. an empty index $staging" >&2
# What an earlier run left. A task that deletes nothing fails, so ask first.
if meili GET "/indexes/$staging" >/dev/null 2>&1; then meili DELETE "/indexes/$staging" | finished; fi
key=$(meili GET "/indexes/$INDEX" | jq -r '.primaryKey // empty')
meili POST /indexes "$(jq -n --arg uid "$staging" --arg key "${key:?$INDEX has no documents}" '{uid: $uid, primaryKey: $key}')" | finished

echo "2. its settings" >&2
# Keys come back masked.
settings=$(meili GET "/indexes/$INDEX/settings" | jq '
  .embedders |= ((. // {}) | with_entries(if .value.source == "rest" then del(.value.apiKey) else . end))')
if [ -n "${EMBEDDER_SETTINGS:-}" ]; then
  settings=$(jq --slurpfile new <(cat "$EMBEDDER_SETTINGS") '.embedders += $new[0].embedders' <<<"$settings")
fi
if [ -n "${EMBEDDER_KEY:-}" ]; then
  settings=$(jq --arg key "$EMBEDDER_KEY" '
    .embedders |= with_entries(if .value.source == "rest" then .value.apiKey //= $key else . end)' <<<"$settings")
fi
meili PATCH "/indexes/$staging/settings" @- <<<"$settings" | finished

echo "3. its documents" >&2
total=$(meili GET "/indexes/$INDEX/stats" | jq .numberOfDocuments)
for ((offset = 0; offset < total; offset += page)); do
  # Cut out of the answer as they are: jq before 1.7 reads numbers as doubles, and ids above 2^53 would become others.
  meili POST "/indexes/$INDEX/documents/fetch" "{\"offset\": $offset, \"limit\": $page}" |
    LC_ALL=C sed -E 's/^\{"results"://; s/,"offset":[0-9]+,"limit":[0-9]+,"total":[0-9]+\}$//' |
    meili POST "/indexes/$staging/documents" @- | finished
  echo "   $((offset + page < total ? offset + page : total)) of $total" >&2
done

echo "4. is all of it there?" >&2
stats=$(meili GET "/indexes/$staging/stats")
jq -e --argjson total "$total" --argjson lack "${MAY_LACK:-0}" '
  .numberOfDocuments == $total and .numberOfEmbeddedDocuments >= $total - $lack' <<<"$stats" >/dev/null || {
  echo "$INDEX has $total documents, $staging has: $stats" >&2
  echo "nothing was swapped" >&2
  exit 1
}
# These numbers count a document that has a vector of any embedder. Of one alone Meilisearch tells with its experimental
# `multimodal`, which pictures have it switched on for.
meili GET "/indexes/$staging/settings/embedders" | jq -c 'keys[]' | while read -r embedder; do
  lack=$(meili POST "/indexes/$staging/documents/fetch" \
    "$(jq -n --arg filter "NOT _vectors.$embedder EXISTS" '{limit: 0, filter: $filter}')") || {
    [ "$(jq -r .code <<<"$lack")" != feature_not_enabled ] || break
    echo "$lack" >&2
    exit 1
  }
  jq -e --argjson lack "${MAY_LACK:-0}" '.total | numbers <= $lack' <<<"$lack" >/dev/null || {
    echo "$(jq .total <<<"$lack") documents have no vector of the embedder $embedder; nothing was swapped" >&2
    exit 1
  }
done

echo "5. the swap" >&2
meili POST /swap-indexes "[{\"indexes\": [\"$INDEX\", \"$staging\"]}]" | finished
echo "$INDEX is new; what it was is $staging, until the next run or until you delete it" >&2
