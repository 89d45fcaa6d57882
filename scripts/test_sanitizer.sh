#!/usr/bin/env bash
# The unit tests of the kernels, vectors, native engine and memory map under AddressSanitizer, on the processor at
# hand: scripts/test_sanitizer.sh
#
# The sanitizer is not stable in Rust yet, hence RUSTC_BOOTSTRAP. The standard library is the usual one: what it does
# with memory is seen by the allocator alone. Not part of the gate.
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address
export CARGO_TARGET_DIR=target/sanitizer # other flags: nothing is shared with the other builds
cargo test --release --target x86_64-unknown-linux-gnu --no-default-features --lib -- \
    kernels:: simd:: engine::native:: mapped::
