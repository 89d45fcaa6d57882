#!/usr/bin/env bash
# Wheels with the program in them, into target/wheels: scripts/build_wheels.sh [small] [arm] [llama]
#
#   small   tqconv for x86-64, without llama.cpp (the default)
#   arm     tqconv for AArch64, without llama.cpp, cross-compiled (the default)
#   llama   tqconv-llama for x86-64, with llama.cpp linked in; takes 10 minutes more on two cores
#
# Our own code finds its instructions at run time. llama.cpp is compiled for AVX2, FMA, F16C and BMI2 (x86-64-v3), as ggml
# does where it is not told to build for the machine at hand. The small ones are linked by zig against glibc 2.17
# (manylinux2014); llama.cpp takes the C++ library of this machine, and maturin names the manylinux that follows from it.
set -euo pipefail
cd "$(dirname "$0")/.."

wheels=$PWD/target/wheels
tools=target/wheel-tools
[ -x "$tools/bin/maturin" ] || { python3 -m venv "$tools" && "$tools/bin/pip" install -q 'maturin>=1.9,<2' ziglang; }
maturin=$PWD/$tools/bin/maturin
export PATH="$PWD/$tools/bin:$PATH" RUSTFLAGS="" # no flags for this machine: see .cargo/config.toml

small() {
  rustup target add "$1"
  "$maturin" build --release --zig --target "$1" --compatibility manylinux2014 --out "$wheels"
}

[ $# -gt 0 ] || set -- small arm
for flavour; do
  case $flavour in
    small) small x86_64-unknown-linux-gnu ;;
    arm) small aarch64-unknown-linux-gnu ;;
    llama) scripts/setup.sh; (cd packaging/llama && "$maturin" build --release --out "$wheels") ;;
    *) echo "error: $flavour is no flavour; give small, arm or llama" >&2; exit 2 ;;
  esac
done
du -h "$wheels"/*.whl
