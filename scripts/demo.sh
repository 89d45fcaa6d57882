#!/usr/bin/env bash
# Build without llama.cpp, pack the checkpoint in fixtures/kjv, and write text with the packed file.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "Building tqconv without llama.cpp: about four minutes on two cores, once."
cargo build --release --no-default-features --bin tqconv
output=target/demo/kjv.gguf
mkdir -p target/demo
target/release/tqconv pack fixtures/kjv "$output" --force
echo
target/release/tqconv run "$output" -n 60 -p "And the LORD said unto Moses,"
