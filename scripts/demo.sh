#!/usr/bin/env bash
# Build, pack the checkpoint in fixtures/kjv, and let llama.cpp write with the packed file.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
cargo build --release
output=target/demo/kjv.gguf
mkdir -p target/demo
target/release/tqconv pack fixtures/kjv "$output" --force
echo
target/release/tqconv run "$output" --engine llama.cpp --threads 1 -n 60 -p "And the LORD said unto Moses,"
