#!/usr/bin/env python3
"""The best learning rate at three widths of `tiny` from random weights, and for three numbers of selected weights, with and
without --lr-scaling. Trainings are short: 60 steps of 4 generated pictures at 128 pixels.

    python benches/width.py --segft target/release/segft --out sweep

Each training is a run folder below --out; those that are there are not made again, so a sweep that was stopped goes on.
Judged by the mean loss of the last epoch: after so few steps from random weights a loss says more than Dice. Markdown on
stdout. "cost" is what the best rate of the middle row loses in the other rows against their own best: the smaller, the
better a rate found at one width or number serves at others.
"""
import argparse
import csv
import json
import math
import pathlib
import subprocess
import sys

WIDTHS = [("½ × tiny", ["--model", "tiny-half-random"]), ("tiny", ["--model", "tiny-random"]), ("2 × tiny", ["--model", "tiny-double-random"])]
NUMBERS = [(f"k = {k}", ["--model", "tiny", "--k", str(k)]) for k in (1, 4, 16)]
AXES = {
    "width": (["--method", "full"], WIDTHS, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
    "k": (["--method", "gps", "--no-biases", "--no-decoder"], NUMBERS, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
}


def train(o, folder, flags):
    """(mean loss of the last epoch, validation mDice) of a training; infinity where it diverged."""
    diverged = folder.with_suffix(".diverged")
    if not (folder / "metrics.json").exists() and not diverged.exists():
        common = ["--dataset", "phantom", "--augment", "none", "--threshold", "0.5", "--device", "cpu"]
        common += ["--steps", str(o.steps), "--image-size", str(o.image), "--sizes", str(o.sizes), "--seed", str(o.seed)]
        command = [o.segft, "train", *common, *flags, "--optimizer", o.optimizer, "--out", str(folder), "--force", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "the loss is" in done.stderr:
            diverged.touch()
        elif done.returncode != 0:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    if diverged.exists():
        return math.inf, 0.0
    with open(folder / "history.csv", newline="") as file:
        loss = float(list(csv.DictReader(file))[-1]["loss"])
    dice = json.loads((folder / "metrics.json").read_text())["validation_mDice"]
    return (loss if math.isfinite(loss) else math.inf), dice


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--segft", required=True)
    a.add_argument("--out", type=pathlib.Path, required=True)
    a.add_argument("--axes", default="width,k")
    a.add_argument("--scalings", default="none,noalign,full")
    a.add_argument("--optimizer", default="adam")
    a.add_argument("--lrs", help="instead of each axis's own")
    a.add_argument("--steps", type=int, default=60)
    a.add_argument("--image", type=int, default=128)
    a.add_argument("--sizes", type=int, default=60, help="pictures for training and validation")
    a.add_argument("--seed", type=int, default=0)
    o = a.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    for axis in o.axes.split(","):
        flags, rows, lrs = AXES[axis]
        lrs = [float(lr) for lr in o.lrs.split(",")] if o.lrs else lrs
        print(f"\n**{axis}**, {o.optimizer}, {' '.join(flags)}: loss at each learning rate\n")
        print(f"| scaling | {axis} | " + " | ".join(f"{lr:g}" for lr in lrs) + " | best lr | mDice there | cost |")
        print("|---|---|" + "---|" * (len(lrs) + 3))
        for scaling in o.scalings.split(","):
            table = []
            for number, (_, row) in enumerate(rows):
                # Settings stand in the name, so that other settings do not find these folders.
                name = f"{axis}-{o.optimizer}-{scaling}-{number}-{o.steps}-{o.image}-{o.sizes}-{o.seed}"
                own = [*flags, *row, "--lr-scaling", scaling]
                table.append([train(o, o.out / f"{name}-{lr:g}", [*own, "--lr", f"{lr:g}"]) for lr in lrs])
            best = [min(range(len(lrs)), key=lambda i: cells[i][0]) for cells in table]
            middle = best[len(best) // 2]
            for (label, _), cells, own in zip(rows, table, best):
                losses = " | ".join(f"{loss:.4f}" for loss, _ in cells)
                cost = cells[middle][0] - cells[own][0]
                print(f"| {scaling} | {label} | {losses} | {lrs[own]:g} | {cells[own][1]:.3f} | {cost:.4f} |", flush=True)


if __name__ == "__main__":
    main()
