#!/usr/bin/env bash
# Fuzz every way in: scripts/fuzz.sh [SECONDS [TARGET...]]
#
# SECONDS (60) are shared by the targets, all of `cargo fuzz list` unless named. Installs cargo-fuzz where it is
# missing (crates.io, about a minute); stable Rust will do. Exits with an error on a crash, on a run of more than 10 s,
# and on more than 256 MiB of memory (fuzz/src/lib.rs); the input is then in fuzz/artifacts/TARGET: keep it in
# fixtures/broken/ as a regression test.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
scripts/setup.sh
command -v cargo-fuzz > /dev/null || cargo install --locked cargo-fuzz
cargo fetch --locked --manifest-path fuzz/Cargo.toml # what is fuzzed is what the lock file says
read -r -a targets <<< "${*:-$(cargo fuzz list | tr '\n' ' ')}"
share=$((seconds / ${#targets[@]}))

# One thread: what a run costs is then what its input costs.
export RAYON_NUM_THREADS=1
for target in "${targets[@]}"; do
    echo "== $target: $((share > 0 ? share : 1)) s"
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time=$((share > 0 ? share : 1)) -max_len=65536 -timeout=10 -rss_limit_mb=1024 \
        -close_fd_mask=1 -print_final_stats=1 -verbosity=0 2>&1 | grep -E 'stat::|SUMMARY|ERROR|panicked|Test unit|error' || [ "${PIPESTATUS[0]}" -eq 0 ]
done
