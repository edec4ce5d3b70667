#!/usr/bin/env python3
"""segft against another program on the same machine in the same minutes: A B A B …, 2 threads each.

    python benches/ratio.py --segft target/release/segft --peer peer_torch.py --case vit_t:256:8:gps --case vit_b:512:1:encode

The peer prints the JSON of `segft bench`. A round is one process of each; a ratio is segft's median seconds over the
peer's in the same round. With --flush the peer, a PyTorch program, takes numbers below the normal range of f32 as 0: with
its random weights the gradients sink into that range, and Intel's processors take a hundred times as long there. Printed: minimum, median, maximum of the ratios, and both peaks of memory. Markdown on stdout.
"""
import argparse
import json
import statistics
import subprocess
import sys


FLUSH = "import runpy, sys, torch; torch.set_flush_denormal(True); del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--segft", required=True)
    a.add_argument("--peer", required=True, help="a Python program with segft bench's flags and keys")
    a.add_argument("--case", action="append", required=True, help="MODEL:IMAGE:BATCH:MODE")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--steps", type=int, default=3)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--dtype", default="f32", help="f32 or bf16, for both")
    a.add_argument("--flush", action="store_true", help="the peer takes subnormal numbers as 0")
    o = a.parse_args()
    peer = [sys.executable, "-c", FLUSH, o.peer] if o.flush else [sys.executable, o.peer]
    print("| case | ratio min / median / max | segft s | peer s | segft MiB | peer MiB |\n|---|---|---|---|---|---|")
    for case in o.case:
        model, image, batch, mode = case.split(":")
        flags = ["--model", model, "--image", image, "--batch", batch, "--mode", mode]
        flags += ["--steps", str(o.steps), "--warmup", "1", "--threads", str(o.threads), "--dtype", o.dtype]
        ours, theirs = [], []
        for _ in range(o.rounds):
            ours.append(run([o.segft, "bench", *flags, "--json"]))
            theirs.append(run([*peer, *flags]))
        ratios = [a["seconds_median"] / b["seconds_median"] for a, b in zip(ours, theirs)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        seconds = [statistics.median(r["seconds_median"] for r in side) for side in (ours, theirs)]
        memory = [max(r["peak_rss_mib"] for r in side) for side in (ours, theirs)]
        print(f"| {case} | {low:.2f} / {middle:.2f} / {high:.2f} | {seconds[0]:.3f} | {seconds[1]:.3f} | {memory[0]} | {memory[1]} |", flush=True)


if __name__ == "__main__":
    main()
