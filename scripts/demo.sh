#!/usr/bin/env bash
# Build without llama.cpp, pack the checkpoint in fixtures/kjv, and write text with the packed file.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "Building tqconv, neither optimized nor with llama.cpp: about a minute and a half on two cores, once."
cargo build --profile demo --no-default-features --bin tqconv
output=target/demo/kjv.gguf
target/demo/tqconv pack fixtures/kjv "$output" --force
echo
target/demo/tqconv run "$output" -n 60 -p "And the LORD said unto Moses,"
echo
echo "For the speed of the hardware: cargo install --path . (with llama.cpp: about 15 minutes), or the same with"
echo "--no-default-features (without: about four)."
