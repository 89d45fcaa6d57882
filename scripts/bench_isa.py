#!/usr/bin/env python3
"""Two instruction sets of our engine against each other, in turns.

    cargo build --release
    python3 scripts/bench_isa.py amx avx512vnni --type tq2_0,q2_k --tokens 16,32,64,128
    python3 scripts/bench_isa.py amx avx512vnni --model bench/tq2_0.gguf --prefill 128
    python3 scripts/bench_isa.py avx2 avx2 --second before/tqconv        # two programs instead

`tqconv bench` measures with one, then with the other, and so on for `--rounds` rounds: one product after the other, or a
whole model. Shown are medians of the rounds and of the ratio in each, with the least and the most; for products also of the
rounds in which the dot instructions of the first, with their loads, did 0.7 of their best in any round or more. A Markdown
table is printed.
"""

import argparse
import itertools
import json
import statistics
import subprocess


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("isa", nargs=2, help="as `tqconv bench --isa` takes it; a ratio above 1: the first is faster")
    parser.add_argument("--tqconv", default="target/release/tqconv")
    parser.add_argument("--second", help="the program for the second, where it is another")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", help="a packed model; without one, products are measured")
    parser.add_argument("--prefill", default="128")
    parser.add_argument("--decode", default="4")
    parser.add_argument("--type", default="tq2_0,q2_k")
    parser.add_argument("--shape", default="2048x2048")
    parser.add_argument("--tokens", default="16,32,64,128")
    parser.add_argument("--seconds", default="0.2", help="for each product in each round")
    parser.add_argument("--activations", default="llama.cpp", help="as `tqconv bench --activations` takes it")
    args = parser.parse_args()

    programs = [args.tqconv, args.second or args.tqconv]
    options = ["bench", "--thread-counts", args.threads, "--activations", args.activations, "--json"]
    if args.model:
        cases = [[args.model, "--prefill", args.prefill, "--decode", args.decode, "--runs", "1"]]
    else:
        lists = (args.type.split(","), args.shape.split(","), args.tokens.split(","))
        cases = [
            ["--type", ty, "--shape", shape, "--tokens", tokens, "--seconds", args.seconds]
            for ty, shape, tokens in itertools.product(*lists)
        ]
    # Both of a ratio one right after the other: the machine may be another a second later.
    both = [[program, *options, "--isa", isa] for program, isa in zip(programs, args.isa)]
    rounds = [[[rates(command + case) for command in both] for case in cases] for _ in range(args.rounds)]

    best = max(first.dots for of_round in rounds for of_case in of_round for first in of_case[0].values())
    names = [*args.isa, "ratio"]
    heads = ["what", *names, *(["undisturbed", *names] if best else [])]
    print(f"{args.threads} threads, {args.rounds} rounds\n")
    print(row(heads))
    print(row(["---"] * len(heads)))
    for of_case in zip(*rounds):
        for what in of_case[0][0]:
            pairs = [[rates[what] for rates in pair] for pair in of_case]
            undisturbed = [pair for pair in pairs if pair[0].dots >= 0.7 * best]
            print(row([what, *columns(pairs), *([str(len(undisturbed)), *columns(undisturbed)] if best else [])]))


class Rate(float):
    """GMAC/s or tokens a second; `dots`: GMAC/s of the dot instructions beside it, 0 where they were not measured."""

    def __new__(cls, value, dots=0):
        rate = super().__new__(cls, value)
        rate.dots = dots or 0
        return rate


def rates(command):
    """What was measured in one run, by name."""
    report = json.loads(subprocess.check_output(command))
    found = {
        f"{of['type']} {of['rows']}x{of['columns']}, {of['tokens']} tokens, GMAC/s": Rate(
            of["gmac_per_second"], of["machine_gmac_per_second"]
        )
        for of in report["products"]
    }
    for model in report["models"]:
        ours = model["engines"][0]
        found[f"prefill of {model['prefill_tokens']}, tok/s"] = Rate(ours["prefill_tokens_per_second"]["median"])
        found["decode, tok/s"] = Rate(ours["decode_tokens_per_second"]["median"])
    return found


def columns(pairs):
    """Both rates and the ratio."""
    if not pairs:
        return ["-"] * 3
    ratios = [first / second for first, second in pairs]
    return [*map(spread, zip(*pairs)), spread(ratios, 2)]


def row(cells):
    return f"| {' | '.join(cells)} |"


def spread(values, digits=0):
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    main()
