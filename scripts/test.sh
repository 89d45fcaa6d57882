#!/usr/bin/env bash
# All tests. One build of llama.cpp serves them, and stays in target/.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
echo "Building llama.cpp takes ten minutes on two cores, once; the tests take about as long each time."
cargo test --release --workspace
