#!/bin/sh
# Indexes the sample catalogue and searches in it once. Needs curl; MEILISEARCH, SETTINGS and DOCUMENTS say where
# everything is, MEILI_MASTER_KEY opens Meilisearch if it has a key.
set -eu

# meili METHOD PATH [curl's own arguments]
meili() {
  method=$1
  path=$2
  shift 2
  if [ -n "${MEILI_MASTER_KEY:-}" ]; then
    set -- --header "Authorization: Bearer $MEILI_MASTER_KEY" "$@"
  fi
  curl --silent --show-error --fail-with-body --request "$method" --header 'Content-Type: application/json' "$@" "$MEILISEARCH$path"
}

# Waits until the task that an answer announces has ended; ends the script unless it succeeded.
wait_for() {
  number=$(printf '%s' "$1" | sed -n 's/.*"taskUid": *\([0-9][0-9]*\).*/\1/p')
  while :; do
    task=$(meili GET "/tasks/${number:?no task: $1}")
    case $task in
      *'"status":"succeeded"'*) return ;;
      *'"status":"failed"'* | *'"status":"canceled"'*)
        echo "task $number did not succeed: $task" >&2
        exit 1
        ;;
    esac
    sleep 1
  done
}

echo "multimodal search on"
meili PATCH /experimental-features --data '{"multimodal": true}' >/dev/null

echo "settings of the index \`pictures\`"
answer=$(meili PATCH /indexes/pictures/settings --data-binary "@$SETTINGS")
wait_for "$answer"

echo "300 documents"
answer=$(meili POST '/indexes/pictures/documents?primaryKey=id' --data-binary "@$DOCUMENTS")
wait_for "$answer"

echo "a large red tree with polka dots:"
meili POST /indexes/pictures/search --data '{
  "q": "a large red tree with polka dots", "limit": 3, "showRankingScore": true,
  "attributesToRetrieve": ["id", "title", "image"],
  "hybrid": {"embedder": "sidelens", "semanticRatio": 1}}'
echo
