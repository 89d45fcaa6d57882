#!/usr/bin/env bash
# verify with a llama.cpp of the user's: scripts/test_llama.sh [PATH]
#
# Without PATH it takes the library of a wheel from PyPI, llama-cpp-py-sync, which needs glibc 2.38 (Debian 13).
set -euo pipefail
cd "$(dirname "$0")/.."
library=${1:-}
if [ -z "$library" ]; then
  wheel=target/llama-wheel
  python3 -m pip install -q --no-deps --target "$wheel" llama-cpp-py-sync==0.11739
  library=$PWD/$wheel/llama_cpp_py_sync
fi
TQCONV_TEST_LLAMA=$library cargo test --release --no-default-features --test it library:: -- --nocapture
