#!/usr/bin/env bash
# The Windows build, made by mingw-w64 and run under wine on an x86-64 Debian (12 or later): scripts/test_windows.sh
#
# Needs rustup's cargo and python3 as all scripts do. Where something is missing it installs rustup's standard library for
# x86_64-pc-windows-gnu and, as root or with sudo, 0.7 GB of Debian's packages: gcc-mingw-w64-x86-64 and wine64. llama.cpp is
# left out.
#
# Runs the unit tests of both crates, then pack, verify, inspect, diff and run as a user would. Every packed file has to
# have the sha256 of what the Linux build packs from the same. Not part of the gate.
set -euo pipefail
cd "$(dirname "$0")/.."

target=x86_64-pc-windows-gnu
work=$PWD/target/windows # other libraries: nothing is shared with the other builds
packages=(gcc-mingw-w64-x86-64 wine64)
if ! dpkg-query -W "${packages[@]}" > /dev/null 2>&1; then
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    echo "== install ${packages[*]}"
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-remove --no-install-recommends \
        "${packages[@]}" > /dev/null
fi
rustup target list --installed | grep -qx "$target" || rustup target add "$target"

wine=$(command -v wine64 || echo /usr/lib/wine/wine64)
export WINEPREFIX=$work/wine WINEARCH=win64 WINEDEBUG=-all
mkdir -p "$work"
echo "== $("$wine" --version), $(rustc --version)"
"$wine" wineboot -i > /dev/null 2>&1
system32=$WINEPREFIX/drive_c/windows/system32
# The standard library takes its random numbers from a library that wine has only since version 9.
if [ ! -e "$system32/bcryptprimitives.dll" ]; then
    echo "== a bcryptprimitives.dll for wine"
    x86_64-w64-mingw32-gcc -shared -O2 -o "$system32/bcryptprimitives.dll" -x c - -ladvapi32 <<'C'
#include <windows.h>
#include <ntsecapi.h>
__declspec(dllexport) BOOL WINAPI ProcessPrng(BYTE *bytes, SIZE_T count) { return RtlGenRandom(bytes, count); }
C
fi

export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$wine
on_windows=(--release --workspace --no-default-features --target "$target" --target-dir "$work")
echo "== unit tests"
cargo test "${on_windows[@]}" --lib
echo "== programs"
cargo build "${on_windows[@]}" --bin tqconv
cargo build --release --no-default-features --target-dir "$work" --bin tqconv
windows=$work/$target/release/tqconv.exe
linux=$work/release/tqconv

out=$work/out
rm -rf "$out"
mkdir -p "$out"
fail() {
    echo "error: $*" >&2
    exit 1
}
# windows [-CODE] ARGUMENTS: the Windows program has to end with CODE, 0 unless given.
windows() {
    local expected=0 code=0
    case $1 in -[0-9]*) expected=${1#-}; shift ;; esac
    echo "tqconv.exe $*"
    "$wine" "$windows" "$@" > "$out/stdout" 2> "$out/stderr" || code=$?
    [ "$code" = "$expected" ] || { cat "$out/stdout" "$out/stderr"; fail "exit code $code, expected $expected: $*"; }
}

echo "== packed files are those of Linux"
# pack OPTIONS: by both, into NAME.gguf; each file of the output has the same sha256.
pack() {
    local input=$1 name=$2
    shift 2
    mkdir -p "$out/linux" "$out/windows"
    "$linux" -q pack "$input" "$out/linux/$name.gguf" "$@" > /dev/null
    windows -q pack "$input" "$out/windows/$name.gguf" "$@"
}
pack fixtures/kjv kjv
pack fixtures/kjv kjv-gpu --for gpu --exact
pack fixtures/kjv kjv-cpu --for cpu --max-nmse 1
pack fixtures/kjv kjv-split --split-max-size 700000
pack fixtures/kjv "größe 大 🦀 & co" --type q4_0
(cd "$out/linux" && sha256sum -- *) > "$out/sums"
(cd "$out/windows" && sha256sum -- *) | diff "$out/sums" - || fail "files differ"
cat "$out/sums"

echo "== a path of more than 260 characters"
long=$out/windows/$(printf 'folder-of-forty-characters-0123456789ab/%.0s' 1 2 3 4 5 6 7)
mkdir -p "$long"
windows -q pack fixtures/kjv "$long/kjv.gguf"
cmp "$long/kjv.gguf" "$out/windows/kjv.gguf"
rm -r "$out/windows/folder-of-forty-characters-0123456789ab"

echo "== the other commands"
file=$out/windows/kjv.gguf
# same [-CODE] ARGUMENTS: both programs print the same and end with CODE, 0 unless given.
same() {
    local expected=0 code=0
    case $1 in -[0-9]*) expected=${1#-}; shift ;; esac
    "$linux" "$@" > "$out/expected" || code=$?
    [ "$code" = "$expected" ] || fail "exit code $code on Linux, expected $expected: $*"
    windows "-$expected" "$@"
    diff "$out/expected" "$out/stdout" || fail "another text: $*"
}
same inspect "$file"
same inspect --json fixtures/kjv
same -1 diff "$file" "$out/windows/größe 大 🦀 & co.gguf" --max-nmse 1e-3
same run "$file" -n 8 -p "And the LORD"
windows verify "$file" --against fixtures/kjv
cat "$out/stdout"
windows verify "$out/windows/kjv-split-00001-of-00003.gguf" --against fixtures/kjv --levels 1,2

echo "== refusals"
# refused CODE TEXT ARGUMENTS: with one line that has TEXT, and nothing left behind.
refused() {
    local code=$1 text=$2
    shift 2
    windows "-$code" "$@"
    grep -qF -- "$text" "$out/stderr" || { cat "$out/stderr"; fail "without \"$text\": $*"; }
}
refused 2 "exists already" pack fixtures/kjv "$file"
refused 2 "is one of the input's files" pack "$file" "$file" --force
refused 2 "create it with \`mkdir " pack fixtures/kjv "$out/none/kjv.gguf"
refused 2 "invalid safetensors file" inspect Cargo.toml
windows -q pack fixtures/kjv "$file" --force
cmp "$file" "$out/linux/kjv.gguf"
! ls "$out/windows" | grep -v '\.gguf$' || fail "something was left behind"

echo "== Ctrl-C, as which wine takes the signal INT, ends a text with exit code 130"
python3 - "$wine" "$windows" run "$file" -n 1000000 -p "And the LORD" <<'PYTHON'
import signal, subprocess, sys

program = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
program.stdout.read(30)  # it has begun
program.send_signal(signal.SIGINT)
_, said = program.communicate()
if program.returncode != 130 or b"(interrupted)" not in said:
    sys.exit(f"error: exit code {program.returncode}: {said.decode()}")
PYTHON

echo "all passed"
