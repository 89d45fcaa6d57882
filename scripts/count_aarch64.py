#!/usr/bin/env python3
"""Instructions of the inner loops of the AArch64 kernels, counted in their assembly.

    rustup target add aarch64-unknown-linux-gnu
    apt-get install llvm
    cargo rustc --release --target aarch64-unknown-linux-gnu --no-default-features --lib -- \\
        --emit asm -C codegen-units=1 -C debuginfo=0 -C symbol-mangling-version=v0
    python3 scripts/count_aarch64.py target/aarch64-unknown-linux-gnu/release/deps/tqconv-*.s

A loop is a run of instructions without a label in it that ends in a jump to its beginning, and has `sdot` or `smmla`. llvm-mca
tells how many micro-operations it becomes on some processors. Its cycles are not shown: they are those of a model without
caches, and for some of these processors of an older one's. A Markdown table is printed.
"""

import argparse
import collections
import re
import subprocess

PROCESSORS = ("neoverse-v1", "apple-m1", "cortex-x2")
# Multiplications of an instruction: four lanes of four, and four squares of eight.
PRODUCTS = {"sdot": 16, "smmla": 32}


def loops(lines):
    """All such loops: the function that each is in, and its instructions."""
    function, label, body = "", None, []
    for line in lines:
        line = line.split("//")[0].strip()
        if re.fullmatch(r"[\w.$]+:", line):
            label, body = line[:-1], []
            if not label.startswith(".L"):
                function = label
        elif line and not line.startswith("."):
            body.append(line)
            if re.match(r"(b\.\w+|cbn?z|tbn?z)\b", line) and line.split()[-1].split(",")[-1].strip() == label:
                yield function, body
                label, body = None, []


def kernel(function):
    """The constants of `panel_product::<BITS, I8MM>` in a symbol of Rust's v0 scheme; else the function's own name."""
    found = re.search(r"panel_productK[a-z]([0-9a-f]+)_Kb([01])_", function)
    if found:
        return f"{int(found[1], 16)}-bit, {['sdot', 'smmla'][int(found[2])]}"
    return re.search(r"dots_by_\w+?(?=B|K|$)", function)[0]


def kind(instruction):
    name = instruction.split()[0]
    if name in PRODUCTS:
        return "dots"
    if name.startswith(("ld", "st")):
        return "loads"
    if re.search(r"\b[vq]\d+\b", instruction):
        return "unpacking"
    return "counting"


def micro_operations(body, processor):
    text = ".arch_extension dotprod\n.arch_extension i8mm\n" + "\n".join(body[:-1])  # llvm-mca takes no jump to nowhere
    options = ["-mtriple=aarch64", f"-mcpu={processor}", "-mattr=+dotprod,+i8mm", "-iterations=100"]
    report = subprocess.run(["llvm-mca", *options], input=text, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Total uOps: +(\d+)", report).group(1)) // 100 + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assembly")
    args = parser.parse_args()
    rows = {}
    with open(args.assembly, encoding="utf-8") as file:
        for function, body in loops(file):
            kinds = collections.Counter(map(kind, body))
            if kinds["dots"]:
                dot = next(name for name in PRODUCTS if any(line.startswith(name) for line in body))
                counts = tuple(kinds[name] for name in ["dots", "unpacking", "loads", "counting"])
                rows.setdefault((kernel(function), dot, counts), body)
    head = ["kernel", "loop of", "dots", "unpacking", "loads", "counting", "for 1024 products"]
    head += [f"micro-operations, {processor}" for processor in PROCESSORS]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for (name, dot, counts), body in sorted(rows.items(), key=lambda row: row[0]):
        each = len(body) * 1024 / (counts[0] * PRODUCTS[dot])
        cells = [name, dot, *counts, f"{each:.0f}", *(micro_operations(body, processor) for processor in PROCESSORS)]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
