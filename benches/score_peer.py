#!/usr/bin/env python3
"""`segft score` against MONAI's DiceMetric and MeanIoU on the same volume pairs: A B A B …, whole processes.

    python benches/score_peer.py --segft target/release/segft --pairs 200 --rounds 5

Makes pairs of label maps (two ellipsoids each, the prediction moved by a few voxels), then times both: segft with
`--no-surfaces`, MONAI with the volumes read by nibabel and made one-hot, background left out. What both say of mDice is
compared before any time is printed.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np


def ellipsoids(shape, rng, shift):
    grid = np.indices(shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    for label in (1, 2):
        centre = np.array(shape) * (0.25 + 0.5 * rng.random(3)) + shift
        radii = np.array(shape) * (0.08 + 0.1 * rng.random(3))
        away = sum(((grid[a] - centre[a]) / radii[a]) ** 2 for a in range(3))
        labels[away < 1] = label
    return labels


def make(folder, pairs, shape):
    import nibabel

    for n in range(pairs):
        for side, shift in (("ref", 0.0), ("pred", 2.0)):
            (folder / side).mkdir(exist_ok=True)
            labels = ellipsoids(shape, np.random.default_rng(n), shift)
            nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / side / f"v{n:03}.nii.gz")


def peer(folder, threads):
    import nibabel
    import torch
    from monai.metrics import DiceMetric, MeanIoU

    torch.set_num_threads(threads)
    dice, iou = DiceMetric(include_background=False), MeanIoU(include_background=False)
    for ref in sorted((folder / "ref").iterdir()):
        load = lambda path: torch.from_numpy(np.asarray(nibabel.load(path).dataobj)).long()
        hot = lambda labels: torch.nn.functional.one_hot(labels, 3).permute(3, 0, 1, 2)[None].float()
        y, p = hot(load(ref)), hot(load(folder / "pred" / ref.name))
        dice(p, y)
        iou(p, y)
    print(json.dumps({"mDice": dice.aggregate().item(), "mIoU": iou.aggregate().item()}))


def timed(command):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, json.loads(done.stdout)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--segft", default="target/release/segft")
    a.add_argument("--pairs", type=int, default=200)
    a.add_argument("--shape", type=int, nargs=3, default=[128, 128, 64])
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--peer", metavar="FOLDER", help="only run the peer on a folder (used by this program itself)")
    o = a.parse_args()
    if o.peer:
        return peer(pathlib.Path(o.peer), o.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make(folder, o.pairs, o.shape)
        sides = ["--pred", str(folder / "pred"), "--ref", str(folder / "ref")]
        ours = [o.segft, "score", *sides, "--no-surfaces", "--json", "--threads", str(o.threads)]
        theirs = [sys.executable, __file__, "--peer", str(folder), "--threads", str(o.threads)]
        seconds = []
        for _ in range(o.rounds):
            (x, mine), (y, other) = timed(ours), timed(theirs)
            assert abs(mine["mDice"] - other["mDice"]) < 1e-4, (mine["mDice"], other["mDice"])
            assert abs(mine["mIoU"] - other["mIoU"]) < 1e-4, (mine["mIoU"], other["mIoU"])
            seconds.append((x, y))
    ratios = [x / y for x, y in seconds]
    x, y = (statistics.median(side) for side in zip(*seconds))
    print(f"{o.pairs} pairs of {'×'.join(map(str, o.shape))}, {o.rounds} rounds, {o.threads} threads")
    print(f"segft {x:.2f} s, MONAI {y:.2f} s, ratio {min(ratios):.3f} / {statistics.median(ratios):.3f} / {max(ratios):.3f}")


if __name__ == "__main__":
    main()
