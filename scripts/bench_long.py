#!/usr/bin/env python3
"""How the rate of a prompt depends on its length, and on what keys and values are kept in.

    cargo build --release --no-default-features         # without llama.cpp, which bench would run, too
    python3 scripts/bench_long.py bench/tq2_0.gguf --threads 2

Each round measures every length with every type, one after the other. Shown are medians of the rounds, and of the ratio
to the first length in each round, with the least and the most. A Markdown table is printed.
"""

import argparse
import json
import statistics
import subprocess


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tqconv", default="target/release/tqconv")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--isa", help="as `tqconv bench --isa` takes it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", default="128,2048", help="tokens of the prompts")
    parser.add_argument("--types", default="f32,bf16", help="what keys and values are kept in")
    parser.add_argument("--decode", default="8", help="tokens that are decoded behind each prompt")
    args = parser.parse_args()
    lengths, types = args.lengths.split(","), args.types.split(",")

    rounds = [{(ty, n): rates(args, ty, n) for ty in types for n in lengths} for _ in range(args.rounds)]

    print(f"{args.threads} threads, {args.rounds} rounds\n")
    print(f"| keys and values | tokens | prefill, tok/s | to {lengths[0]} tokens | decode behind them, tok/s |")
    print("|---|---|---|---|---|")
    for ty in types:
        for n in lengths:
            prefill, decode = zip(*(of[ty, n] for of in rounds))
            ratios = [of[ty, n][0] / of[ty, lengths[0]][0] for of in rounds]
            print(f"| {ty} | {n} | {spread(prefill)} | {spread(ratios, 2)} | {spread(decode, 1)} |")


def rates(args, ty, length):
    """Tokens a second, of a prompt and behind it."""
    command = [args.tqconv, "bench", args.model, "--thread-counts", args.threads, "--runs", "1", "--json"]
    command += ["--prefill", length, "--decode", args.decode, "--cache-type-k", ty, "--cache-type-v", ty]
    if args.isa:
        command += ["--isa", args.isa]
    ours = json.loads(subprocess.check_output(command))["models"][0]["engines"][0]
    return [ours[f"{what}_tokens_per_second"]["median"] for what in ("prefill", "decode")]


def spread(values, digits=0):
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    main()
