"""Reference values for src/score/surface.rs, from MONAI; DeepMind's surface-distance beside them for comparison.

    pip install numpy scipy monai surface-distance
    python tests/reference/surface.py > tests/reference/surface.json

Masks are random blobs and random voxels, seeded. A mask is written as hexadecimal digits of its voxels, first axis
fastest, most significant bit first.
"""

import json
import sys
import warnings

import monai
import numpy as np
import surface_distance as deepmind
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.metrics import compute_dice, compute_iou
from scipy.ndimage import gaussian_filter

SHAPES = [((17, 13), (1.0, 1.0)), ((24, 9), (0.5, 2.0)), ((11, 10, 8), (1.0, 1.0, 1.0)), ((9, 12, 7), (0.7, 0.7, 5.0)),
          ((16, 8, 6), (1.3, 0.9, 2.5))]


def blob(rng, shape, share):
    field = gaussian_filter(rng.standard_normal(shape), 1.5)
    return field > np.quantile(field, 1 - share)


def noise(rng, shape, share):
    return rng.random(shape) < share


def bits(mask):
    return np.packbits(mask.ravel(order="F")).tobytes().hex()


def case(make, rng, shape, spacing, share):
    reference, prediction = make(rng, shape, share), make(rng, shape, share)
    y, y_pred = (torch.tensor(m[None, None]) for m in (reference, prediction))
    kwargs = {"include_background": True, "spacing": list(spacing)}
    nsd = {str(t): float(compute_surface_dice(y_pred, y, class_thresholds=[t], **kwargs)) for t in (0.8, 1.0, 2.0)}
    surfaces = deepmind.compute_surface_distances(reference, prediction, spacing)
    return {
        "shape": shape, "spacing_mm": spacing, "reference": bits(reference), "prediction": bits(prediction),
        "Dice": float(compute_dice(y_pred, y)), "IoU": float(compute_iou(y_pred, y)),
        "HD_mm": float(compute_hausdorff_distance(y_pred, y, **kwargs)),
        "HD95_mm": float(compute_hausdorff_distance(y_pred, y, percentile=95, **kwargs)),
        "ASSD_mm": float(compute_average_surface_distance(y_pred, y, symmetric=True, **kwargs)),
        "NSD": nsd,
        "deepmind": {
            "HD95_mm": float(deepmind.compute_robust_hausdorff(surfaces, 95)),
            "NSD": {str(t): float(deepmind.compute_surface_dice_at_tolerance(surfaces, t)) for t in (0.8, 1.0, 2.0)},
        },
    }


def main():
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(20240717)
    cases = [case(make, rng, shape, spacing, share)
             for shape, spacing in SHAPES for make, share in ((blob, 0.3), (blob, 0.08), (noise, 0.5), (noise, 0.05))]
    versions = {"monai": monai.__version__, "numpy": np.__version__, "surface-distance": "0.1"}
    body = ",\n".join(json.dumps(c) for c in cases)
    sys.stdout.write(f'{{"versions": {json.dumps(versions)},\n"cases": [\n{body}\n]}}\n')


main()
