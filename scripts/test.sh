#!/usr/bin/env bash
# All tests. One build of llama.cpp serves them, and stays in target/.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
cargo test --release --workspace
