#!/usr/bin/env bash
# Wheels and archives with the program, its manual and completions, into target/wheels:
# scripts/build_wheels.sh [small] [arm] [llama]
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
tools=$PWD/target/wheel-tools
[ -x "$tools/bin/maturin" ] || { python3 -m venv "$tools" && "$tools/bin/pip" install -q 'maturin>=1.9,<2' ziglang; }
export PATH="$tools/bin:$PATH" RUSTFLAGS="" # no flags for this machine: see .cargo/config.toml
host=x86_64-unknown-linux-gnu

# What lies beside the program under the prefix that it is installed to. A folder of this name goes into a wheel.
share=$PWD/tqconv.data/data/share
trap 'rm -rf tqconv.data packaging/llama/tqconv.data' EXIT
describe() {
  local program=target/$host/release/tqconv
  mkdir -p "$share"/{man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
  "$program" man "$share/man/man1"
  "$program" completions bash > "$share/bash-completion/completions/tqconv"
  "$program" completions zsh > "$share/zsh/site-functions/_tqconv"
  "$program" completions fish > "$share/fish/vendor_completions.d/tqconv.fish"
}

wheel() { maturin build --release --zig --target "$1" --compatibility manylinux2014 --out "$2"; }

small() {
  wheel "$1" "$wheels"
  local folder=tqconv-$1
  mkdir -p "target/$folder"
  cp -r "target/$1/release/tqconv" "$share" LICENSE-* "target/$folder"
  tar -C target -czf "$wheels/$folder.tar.gz" "$folder"
  rm -r "target/$folder"
}

[ $# -gt 0 ] || set -- small arm
rustup target add "$host" aarch64-unknown-linux-gnu
wheel "$host" target/wheel-tools # for a program that describes itself
describe
for flavour; do
  case $flavour in
    small) small "$host" ;;
    arm) small aarch64-unknown-linux-gnu ;;
    llama)
      scripts/setup.sh
      cp -r tqconv.data packaging/llama/
      (cd packaging/llama && maturin build --release --out "$wheels")
      ;;
    *) echo "error: $flavour is no flavour; give small, arm or llama" >&2; exit 2 ;;
  esac
done
du -h "$wheels"/*
