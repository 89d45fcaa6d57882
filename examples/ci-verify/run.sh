#!/usr/bin/env bash
# Pack CHECKPOINT into OUT/model.gguf and prove it; every command that fails ends this script.
set -euo pipefail
[[ $# == 2 ]] || { echo "usage: $0 CHECKPOINT OUT" >&2; exit 2; }
tqconv=${TQCONV:-tqconv}
mkdir -p "$2"
"$tqconv" pack "$1" "$2/model.gguf" --card --manifest "$2/manifest.json"
"$tqconv" verify "$2/model.gguf" --against "$1" \
    --card "$2/README.md" --report "$2/proof.html" --attest "$2/proof.json" --reproducible
