#!/usr/bin/env bash
# Install what the build needs beyond rustup, git, gcc and python3: a C++ compiler, make, cmake and libclang for llama.cpp.
set -euo pipefail

missing() { ! command -v "$1" >/dev/null 2>&1; }
no_libclang() { [ -z "${LIBCLANG_PATH:-}" ] && ! ldconfig -p 2>/dev/null | grep -q libclang && ! ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1; }

if missing c++ || missing make || missing cmake || no_libclang; then
  if missing apt-get; then
    echo "error: install a C++ compiler, make, cmake and libclang with your package manager, then run this again" >&2
    exit 2
  fi
  as_root=""
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq build-essential cmake libclang-dev >/dev/null
fi
