#!/usr/bin/env python3
"""Measure `tqconv pack` against the limits of the machine: time and peak memory.

    cargo build --release
    python3 scripts/make_checkpoint.py --shape llama-3.2-1b bench/1b
    python3 scripts/bench_pack.py bench/1b [--runs 5] [--cold] [--converter convert_hf_to_gguf.py] [--pack "--for gpu"]

The limits are `cat INPUT > /dev/null` and `cat OUTPUT > COPY`, and their sum; `cp` of the input is shown beside them.
Commands take turns, so that other load on the machine falls on all alike; each is given by the median of its runs, and
by the least. The input is read once before, so that it is in the file cache where memory allows (--cold: dropped from
the cache before each run, as root). INPUT is a checkpoint, or a GGUF file of one file. Memory is read from /proc every
2 ms: anonymous (what the program holds), and of files (what is mapped of them). A Markdown table is printed.
"""

import argparse
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

INTERVAL = 0.002  # seconds between looks at a process's memory


def memory(pid):
    """(anonymous, of files) resident bytes of a process."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(int(fields.get(key, "0 kB").split()[0]) * 1024 for key in ("RssAnon", "RssFile"))


def run(command):
    """(seconds, CPU seconds, peak anonymous bytes, peak bytes of files) of a command."""
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    anonymous, files = 0, 0
    while process.poll() is None:
        now = memory(process.pid)
        anonymous, files = max(anonymous, now[0]), max(files, now[1])
        time.sleep(INTERVAL)
    seconds, after = time.perf_counter() - start, os.times()
    if process.returncode != 0:
        sys.exit(f"{shlex.join(command)}: {process.stderr.read()}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, anonymous, files


def shell(command):
    return ["sh", "-c", f"exec {command}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=pathlib.Path, help="a folder with a checkpoint, or a GGUF file")
    parser.add_argument("--tqconv", default="target/release/tqconv")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the outputs [the input's own]")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--threads", default="1,2", help="for example 1,2,4")
    parser.add_argument("--pack", default="", help="more options for `tqconv pack`")
    parser.add_argument("--converter", help="llama.cpp's convert_hf_to_gguf.py, run once with this Python")
    args = parser.parse_args()

    is_gguf = args.input.is_file()
    weights = [args.input] if is_gguf else sorted(args.input.glob("*.safetensors"))
    folder = args.output or (args.input.parent if is_gguf else args.input)
    packed, copy, copied = (folder / name for name in ("bench.gguf", "bench.copy", "bench.cp"))
    inputs = shlex.join(map(str, weights))

    def pack(threads):
        options = ["--force", "--quiet", "--threads", threads, *args.pack.split()]
        return [args.tqconv, "pack", str(args.input), str(packed), *options]

    commands = {
        "read: cat INPUT > /dev/null": shell(f"cat {inputs} > /dev/null"),
        "write: cat OUTPUT > COPY": shell(f"cat {shlex.quote(str(packed))} > {shlex.quote(str(copy))}"),
        "copy: cat INPUT > COPY": shell(f"cat {inputs} > {shlex.quote(str(copied))}"),
        **{f"tqconv pack, {threads} threads": pack(threads) for threads in args.threads.split(",")},
    }
    run(pack("2"))
    results = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, command in commands.items():
            copy.unlink(missing_ok=True)
            copied.unlink(missing_ok=True)
            if name.startswith("tqconv"):
                packed.unlink()
            if args.cold:
                os.sync()
                pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
            results[name].append(run(command))
    if args.converter:
        command = [sys.executable, args.converter, str(args.input), "--outtype", "tq2_0", "--outfile", str(copied)]
        results["convert_hf_to_gguf.py --outtype tq2_0"] = [run(command)]
    sizes = sum(path.stat().st_size for path in weights), packed.stat().st_size
    for path in (packed, copy, copied):
        path.unlink(missing_ok=True)

    median = {name: statistics.median(seconds for seconds, *_ in runs) for name, runs in results.items()}
    least = {name: min(seconds for seconds, *_ in runs) for name, runs in results.items()}
    limits = [name for name in results if name.startswith(("read", "write"))]
    limit, least_limit = (sum(of[name] for name in limits) for of in (median, least))
    print(f"input {sizes[0] / 1e9:.2f} GB in {len(weights)} files, output {sizes[1] / 1e9:.2f} GB, {args.runs} runs\n")
    print("| command | median s | least s | CPU s | / (read + write), of medians and of leasts | anonymous MB | of files MB |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in results.items():
        cpu = statistics.median(cpu for _, cpu, *_ in runs)
        anonymous, files = (max(run[column] for run in runs) / 1e6 for column in (2, 3))
        ratios = f"{median[name] / limit:.2f}, {least[name] / least_limit:.2f}"
        print(f"| {name} | {median[name]:.2f} | {least[name]:.2f} | {cpu:.2f} | {ratios} | {anonymous:.0f} | {files:.0f} |")


if __name__ == "__main__":
    main()
