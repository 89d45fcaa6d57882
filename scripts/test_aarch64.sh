#!/usr/bin/env bash
# The AArch64 kernels, linted and tested under emulation on an x86-64 Debian (12 or later): scripts/test_aarch64.sh
#
# Needs rustup's cargo as all scripts do. Where something is missing it installs, as root or with sudo, 1.1 GB of
# Debian's packages: a rustc that has arm64's standard library (in /usr/bin; rustup's stays as it is), clippy for it, a
# cross compiler to link with, and qemu. llama.cpp is left out.
#
# Runs the unit tests of both crates on a CPU that has dotprod and I8MM, and those of the kernels on one without I8MM.
# Speed cannot be seen this way: qemu is many times slower than a processor. Not part of the gate.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web rust-web-clippy libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)
if ! dpkg-query -W "${packages[@]}" > /dev/null 2>&1; then
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    echo "== install ${packages[*]}"
    $as_root dpkg --add-architecture arm64
    $as_root apt-get update -qq
    # --no-remove: where these packages cannot live beside what is installed, apt-get stops here.
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-remove --no-install-recommends \
        "${packages[@]}" > /dev/null
fi

# No -L: the C library that came with the arm64 packages fits its loader, the cross compiler's may not.
on() { echo "qemu-aarch64-static -cpu $1"; }
export RUSTC=/usr/bin/rustc
export CARGO_BUILD_TARGET=aarch64-unknown-linux-gnu
export CARGO_TARGET_DIR=target/aarch64 # another compiler: nothing is shared with the other builds
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

echo "== clippy"
/usr/bin/cargo-clippy clippy --release --workspace --all-targets --no-default-features -- -D warnings
echo "== unit tests on a CPU with dotprod and I8MM"
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$(on max) \
    cargo test --release --workspace --lib --no-default-features
echo "== kernels on a CPU without I8MM"
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$(on neoverse-n1) \
    cargo test --release --lib --no-default-features -- --nocapture kernels::
