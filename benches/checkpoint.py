#!/usr/bin/env python3
"""A .pth with the official names and shapes and random weights, written by torch: what "ViT-B with random weights" in RESULTS.md is.

    python benches/checkpoint.py --names sam_vit_b.txt --out vitb.pth

A line of the list holds name, shape as 768x3x16x16, and type, divided by tabs. Needs torch.
"""
import argparse

import torch


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--names", required=True)
    a.add_argument("--out", required=True)
    a.add_argument("--seed", type=int, default=0)
    o = a.parse_args()
    torch.manual_seed(o.seed)
    weights = {}
    with open(o.names) as file:
        for line in file:
            name, shape = line.split("\t")[:2]
            sizes = [int(n) for n in shape.split("x")]
            # Norms' scales are about 1, and the rest is small, as in a network that was just made.
            is_scale = name.endswith("weight") and len(sizes) == 1
            weights[name] = torch.ones(sizes) if is_scale else 0.02 * torch.randn(sizes)
    torch.save(weights, o.out)


if __name__ == "__main__":
    main()
