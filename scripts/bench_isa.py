#!/usr/bin/env python3
"""Two instruction sets of our engine against each other, in turns.

    cargo build --release
    python3 scripts/bench_isa.py amx avx512vnni --type tq2_0,q2_k --tokens 16,32,64,128
    python3 scripts/bench_isa.py amx avx512vnni --model bench/tq2_0.gguf --prefill 128

`tqconv bench` measures with one, then with the other, and so on for `--rounds` rounds: single products, or a whole model.
Shown are medians of the rounds and of the ratio in each, with the least and the most. A Markdown table is printed.
"""

import argparse
import json
import statistics
import subprocess


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("isa", nargs=2, help="as `tqconv bench --isa` takes it; a ratio above 1: the first is faster")
    parser.add_argument("--tqconv", default="target/release/tqconv")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", help="a packed model; without one, products are measured")
    parser.add_argument("--prefill", default="128")
    parser.add_argument("--decode", default="4")
    parser.add_argument("--type", default="tq2_0,q2_k")
    parser.add_argument("--shape", default="2048x2048")
    parser.add_argument("--tokens", default="16,32,64,128")
    parser.add_argument("--seconds", default="0.3", help="for each product in each round")
    args = parser.parse_args()

    command = [args.tqconv, "bench", "--thread-counts", args.threads, "--json"]
    if args.model:
        command += [args.model, "--prefill", args.prefill, "--decode", args.decode, "--runs", "1"]
    else:
        command += ["--type", args.type, "--shape", args.shape, "--tokens", args.tokens, "--seconds", args.seconds]
    rounds = [[rates(command, isa) for isa in args.isa] for _ in range(args.rounds)]

    print(f"{args.threads} threads, {args.rounds} rounds\n\n| what | {' | '.join(args.isa)} | ratio |\n|---|---|---|---|")
    for what in rounds[0][0]:
        of_isa = [[both[i][what] for both in rounds] for i in range(2)]
        ratios = [first / second for first, second in zip(*of_isa)]
        print(f"| {what} | {' | '.join(map(spread, of_isa))} | {spread(ratios, 2)} |")


def rates(command, isa):
    """What was measured in one run, by name: GMAC/s of a product, tokens a second of a model."""
    report = json.loads(subprocess.check_output([*command, "--isa", isa]))
    found = {
        f"{of['type']} {of['rows']}x{of['columns']}, {of['tokens']} tokens, GMAC/s": of["gmac_per_second"]
        for of in report["products"]
    }
    for model in report["models"]:
        ours = model["engines"][0]
        found[f"prefill of {model['prefill_tokens']}, tok/s"] = ours["prefill_tokens_per_second"]["median"]
        found["decode, tok/s"] = ours["decode_tokens_per_second"]["median"]
    return found


def spread(values, digits=0):
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    main()
