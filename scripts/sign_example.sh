#!/usr/bin/env bash
# Packs and verifies the checkpoint in fixtures/kjv, signs the file, its checkpoint, manifest and statement with a key of
# its own by PyPI's model-signing, verifies the signature without a network, and shows that one changed byte in the file,
# in an input or in the statement is noticed.
# Usage: scripts/sign_example.sh [TQCONV]
set -euo pipefail
cd "$(dirname "$0")/.."
tqconv=$(realpath "${1:-target/release/tqconv}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q model-signing pyopenssl
signing=$work/venv/bin/model_signing

mkdir "$work/release"
cp -r fixtures/kjv "$work/release/checkpoint"
cd "$work/release"
"$tqconv" pack checkpoint kjv.gguf --manifest kjv.manifest.json -q
"$tqconv" verify kjv.gguf --against checkpoint --tokens 64 --attest kjv.proof.json --reproducible -q

openssl ecparam -name prime256v1 -genkey -noout -out "$work/key.pem"
openssl ec -in "$work/key.pem" -pubout -out "$work/key.pub" 2>/dev/null
"$signing" sign key . --private_key "$work/key.pem" --signature "$work/release.sig"

verified() {
    "$signing" verify key . --public_key "$work/key.pub" --signature "$work/release.sig" >"$work/log" 2>&1
}

verified && echo "signed, and the signature is verified: $(ls | tr '\n' ' ')"
for file in kjv.gguf checkpoint/model.safetensors checkpoint/tokenizer.json kjv.proof.json kjv.manifest.json; do
    cp "$file" "$work/kept"
    python3 - "$file" <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(-1, 2)
    last = file.read(1)[0]
    file.seek(-1, 2)
    file.write(bytes([last ^ 1]))
PYTHON
    if verified; then
        echo "one changed byte of $file was not noticed" >&2
        exit 1
    fi
    echo "one changed byte of $file is noticed"
    cp "$work/kept" "$file"
done
verified && echo "put back, all is verified again"
