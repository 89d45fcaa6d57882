#!/usr/bin/env python3
"""Bits against measured KLD: files of one type, and files whose types --max-kld chose.

    scripts/kld_curve.py TQCONV CHECKPOINT [--text FILE] [--for cpu] [--budgets 0.05,0.02,...] [--json OUT.json]

TQCONV is a program with llama.cpp built in, so that `verify` measures each file with both engines. Prints a table in
Markdown. For gpu our engine rounds activations as CUDA does, llama.cpp as on a CPU. A type whose blocks do not fill the
columns of a linear gives way to the next of the target's list there.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

LISTS = {"any": ["q2_k", "q4_0"], "cpu": ["tq2_0", "q2_k", "q4_0"], "gpu": ["q2_0", "q2_k", "q4_0"]}
WEIGHTS = {"tq2_0": 256, "q2_k": 256, "q2_0": 64, "q4_0": 32}


def columns(checkpoint):
    """The columns of every kind of linear, by a part of its name in the file."""
    config = json.loads((checkpoint / "config.json").read_text())
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"] * config.get("head_dim", hidden // config["num_attention_heads"])
    wide = {"attn_output": heads, "ffn_down": config["intermediate_size"]}
    return {part: wide.get(part, hidden) for part in
            ["attn_q.", "attn_k.", "attn_v.", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]}


def one_type(ty, types, checkpoint):
    """Options for `ty` wherever it fits, and for the first that fits elsewhere."""
    options = ["--max-nmse", "1"]
    for part, width in columns(checkpoint).items():
        fitting = [other for other in [ty, *types] if width % WEIGHTS[other] == 0]
        options += ["--tensor-type", f"{part}={fitting[0]}"]
    return options


def run(*words):
    """A command's JSON; `verify` ends with 1 where it disagrees."""
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if not ran.stdout:
        raise SystemExit(f"{' '.join(map(str, words))}: {ran.stderr}")
    return json.loads(ran.stdout)


def measure(args, target, options, folder):
    """Pack, and verify: what a row of the table has."""
    file = pathlib.Path(folder) / "out.gguf"
    start = time.time()
    packed = run(args.tqconv, "pack", args.checkpoint, file, "--force", "--json", "--for", target, *options)
    seconds = time.time() - start
    text = ["--text", args.text] if args.text else []
    rounded = ["--activations", "per-64"] if target == "gpu" else []  # our engine as CUDA
    verified = run(args.tqconv, "verify", file, "--against", args.checkpoint, "--levels", "4", "--tokens", args.tokens,
                   "--max-nmse", "1", "--json", *text, *rounded)
    kld = {engine["engine"]["name"]: sum(engine["kld_nats"]) / len(engine["kld_nats"])
           for engine in verified["text"]["tested"]}
    told = packed["max_kld"] or {"kld_nats": {}}
    return {
        "for": target, "bits": packed["bits_per_weight"], "bytes": packed["bytes"], "linears": packed["linears"],
        "nmse": packed["nmse"], "predicted": told["kld_nats"], "verified": kld, "seconds": seconds,
        "parts": told.get("tokens_of_parts"), "sum": told.get("sum_of_parts_nats"),
        "measured": told.get("whole_files_measured"), "verdict": verified["verdict"],
    }


def row(name, found):
    """A line of the table."""
    def number(value):
        return "" if value is None else f"{value:.2e}"
    linears = ", ".join(f"{count} {ty}" for ty, count in found["linears"].items())
    cells = [
        found["for"], name, f"{found['bits']:.3f}", f"{found['bytes'] / 1e6:.1f}", linears,
        *(number(found["predicted"].get(backend)) for backend in ["cpu", "native", "cuda"]),
        number(found["verified"].get("native")), number(found["verified"].get("llama.cpp")),
        f"{found['seconds']:.0f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tqconv", type=pathlib.Path)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--text")
    parser.add_argument("--for", dest="targets", default="any,cpu,gpu")
    parser.add_argument("--budgets", default="0.02,0.01,0.005,0.002,0.001")
    parser.add_argument("--tokens", default="1024")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    print("| for | request | bits | MB | linears | told, CPU | tqconv | CUDA | verify, tqconv | llama.cpp | s |")
    print("|---|---|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for target in args.targets.split(","):
            types = LISTS[target]
            requests = [(ty.upper(), one_type(ty, types, args.checkpoint)) for ty in types]
            requests += [(f"`--max-kld {budget}`", ["--max-kld", budget] + (["--text", args.text] if args.text else []))
                         for budget in args.budgets.split(",")]
            for name, options in requests:
                try:
                    measured = measure(args, target, options, folder)
                except SystemExit as error:
                    print(f"| {target} | {name} | {error} |", flush=True)
                    continue
                found.append({"request": name, **measured})
                row(name, measured)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
