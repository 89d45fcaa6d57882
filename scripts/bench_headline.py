#!/usr/bin/env python3
"""Ternary against BF16: the same network on the same machine, ternary in our engine and BF16 in llama.cpp.

    cargo build --release
    python3 scripts/make_checkpoint.py --shape llama-3.2-1b bench/1b
    tqconv pack bench/1b bench/tq2_0.gguf --type tq2_0 --max-nmse 1 --embedding q8_0
    tqconv pack bench/1b bench/bf16.gguf --type bf16 --embedding bf16
    python3 scripts/bench_headline.py bench/tq2_0.gguf bench/bf16.gguf [--threads 2] [--rounds 3]

`tqconv bench` times both files in turns, and each figure is the median of the rounds: of the first file our engine counts, of
the second llama.cpp. llama.cpp's speed on the first is shown beside them. A Markdown table is printed.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

# Which file, and which engine of `tqconv bench`: ours is the first.
ROWS = {"tqconv, ternary": (0, 0), "llama.cpp, ternary": (0, 1), "llama.cpp, BF16": (1, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ternary", type=pathlib.Path, help="a packed model")
    parser.add_argument("bf16", type=pathlib.Path, help="the same model in BF16")
    parser.add_argument("--tqconv", default="target/release/tqconv")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--prefill", default="128")
    parser.add_argument("--decode", default="24")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    rates = {row: ([], []) for row in ROWS}
    workload = ["--thread-counts", args.threads, "--prefill", args.prefill, "--decode", args.decode, "--runs", "1"]
    for _ in range(args.rounds):
        speeds = []
        for file in (args.ternary, args.bf16):
            output = subprocess.check_output([args.tqconv, "bench", file, *workload, "--json"])
            speeds.append(json.loads(output)["models"][0]["engines"])
        for row, (file, engine) in ROWS.items():
            for kind, all_rates in zip(("prefill_tokens_per_second", "decode_tokens_per_second"), rates[row]):
                all_rates.append(speeds[file][engine][kind]["median"])

    print(f"{args.threads} threads, prefill of {args.prefill}, decode of {args.decode}, {args.rounds} rounds\n")
    print("| engine, file | prefill, tok/s | decode, tok/s | prefill, to BF16 | decode, to BF16 |\n|---|---|---|---|---|")
    base = [statistics.median(of) for of in rates["llama.cpp, BF16"]]
    for row, of in rates.items():
        medians = [statistics.median(values) for values in of]
        cells = [f"{rate:.1f} ({min(values):.1f} to {max(values):.1f})" for rate, values in zip(medians, of)]
        ratios = [f"{rate / least:.2f}" for rate, least in zip(medians, base)]
        print(f"| {row} | {' | '.join(cells + ratios)} |")


if __name__ == "__main__":
    main()
