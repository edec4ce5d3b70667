#!/usr/bin/env python3
"""Seconds of every kind of work over the picture's side and over k, and the share of the machine's matrix peak.

    python benches/sweep.py --segft target/release/segft --out vit_b.svg

The peak is torch's product of two f32 matrices of 4096 on the same threads, in the same minutes, or what --peak says: on AMD's
processors `cargo bench --bench kernels -- product_of_4096` (137.4 GFLOP) is twice as fast. The work of a mode
is counted from shapes: what a forward pass, the gradients of inputs and those of weights need in matrix products, without
padding and without anything computed twice. What is missing from 100 % is everything else: norms, GELU, softmax, the decoder,
moving memory. Markdown on stdout; the plot needs matplotlib.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time

# Width and depth of the encoder; every third block is global, the others look at windows of 14.
SIZES = {"vit_t": (192, 12), "vit_b": (768, 12)}
PATCH, WINDOW, NECK, GLOBAL = 16, 14, 256, 4


def forward(model, image):
    """GFLOP of the encoder's linear layers and of its attention."""
    width, depth = SIZES[model]
    side = image // PATCH
    tokens = side * side
    linear = depth * 12 * width * width + 3 * PATCH * PATCH * width + NECK * width + 9 * NECK * NECK
    # Every query of a windowed block sees a whole window, which SAM fills up at the picture's edge.
    attention = 2 * width * tokens * (GLOBAL * tokens + (depth - GLOBAL) * WINDOW**2)
    return 2e-9 * tokens * linear, 2e-9 * attention


def work(mode, model, image):
    """GFLOP that a mode needs in the encoder."""
    linear, attention = forward(model, image)
    times = {"encode": (1, 1), "chain": (2, 3), "full": (3, 3)}.get(mode, (2, 3))
    return times[0] * linear + times[1] * attention


def peak(threads, rounds=5, side=4096):
    """GFLOP/s of torch's matrix product."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2e-9 * side**3 / statistics.median(seconds[1:])


def bench(o, mode, image, k):
    command = [o.segft, "bench", "--model", o.model, "--image", str(image), "--mode", mode, "--k", str(k)]
    command += ["--steps", str(o.steps), "--warmup", "1", "--threads", str(o.threads), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def plot(file, images, ks, seconds):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "segft"
    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for mode in ("encode", "chain", "gps", "full"):
        left.plot(images, [seconds[mode, image, ks[0]] for image in images], "o-", label=mode)
    left.set(xlabel="side of the picture, pixels", ylabel="seconds", yscale="log", xticks=images)
    left.legend()
    for image in images:
        first = seconds["gps", image, ks[0]]
        right.plot(ks, [seconds["gps", image, k] / first for k in ks], "o-", label=f"{image} pixels")
    right.set(xlabel="k", ylabel=f"gps step, times that of k = {ks[0]}", xscale="log")
    right.set_xticks(ks, [str(k) for k in ks])
    right.set_ylim(bottom=0.9)
    right.legend()
    pyplot.savefig(file, metadata={"Date": None})


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--segft", required=True)
    a.add_argument("--model", default="vit_b", choices=SIZES)
    a.add_argument("--images", default="256,512,768,1024")
    a.add_argument("--ks", default="1,4,16,64")
    a.add_argument("--steps", type=int, default=3)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--peak", type=float, help="GFLOP/s")
    a.add_argument("--out", help="a plot, SVG")
    o = a.parse_args()
    images, ks = ([int(v) for v in list.split(",")] for list in (o.images, o.ks))
    top = o.peak or peak(o.threads)
    print(f"{o.model}, batch 1, f32, {o.threads} threads, median (min to max) of {o.steps}; matrix peak {top:.0f} GFLOP/s\n")
    columns = [(mode, ks[0]) for mode in ("encode", "chain", "full")] + [("gps", k) for k in ks]
    names = [f"gps, k = {k}" if mode == "gps" else mode for mode, k in columns]
    print(f"| side | {' | '.join(names)} |\n|---|{'---|' * len(columns)}")
    seconds, memory = {}, {}
    for image in images:
        row = []
        for mode, k in columns:
            got = bench(o, mode, image, k)
            middle = got["seconds_median"]
            seconds[mode, image, k], memory[mode, image, k] = middle, got["peak_rss_mib"]
            row.append(f"{middle:.3f} ({min(got['seconds']):.3f} to {max(got['seconds']):.3f})")
        print(f"| {image} | {' | '.join(row)} |", flush=True)
    print(f"\n| side | gps / chain | gps / full | {' | '.join(f'k = {k} / k = {ks[0]}' for k in ks[1:])} | floor of gps, s "
          f"| share of the peak: encode | gps | full | MiB: encode | gps | full |\n|---|{'---|' * (9 + len(ks))}")
    for image in images:
        s = {mode: seconds[mode, image, ks[0]] for mode in ("encode", "chain", "gps", "full")}
        row = [s["gps"] / s["chain"], s["gps"] / s["full"], *(seconds["gps", image, k] / s["gps"] for k in ks[1:])]
        row = [f"{v:.2f}" for v in [*row, work("gps", o.model, image) / top]]
        row += [f"{100 * work(mode, o.model, image) / s[mode] / top:.0f} %" for mode in ("encode", "gps", "full")]
        row += [str(memory[mode, image, ks[0]]) for mode in ("encode", "gps", "full")]
        print(f"| {image} | {' | '.join(row)} |", flush=True)
    if o.out:
        plot(o.out, images, ks, seconds)


if __name__ == "__main__":
    main()
