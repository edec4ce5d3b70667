#!/usr/bin/env python3
"""Whether predicted volumes lie on the grids of what they were predicted from, as nibabel reads both.

    segft predict VOLUMES --run RUN --out PREDICTED
    python benches/grids.py VOLUMES PREDICTED

Compared are shape, affine, zooms, both transform codes and units. Needs nibabel and numpy.
"""
import pathlib
import sys

import nibabel
import numpy

FIELDS = {
    "shape": lambda v: v.shape[:3],
    "affine": lambda v: v.affine,
    "zooms": lambda v: v.header.get_zooms()[:3],
    "qform code": lambda v: int(v.header["qform_code"]),
    "sform code": lambda v: int(v.header["sform_code"]),
    "units": lambda v: v.header.get_xyzt_units()[0],
}


def main():
    volumes, predicted = (pathlib.Path(folder) for folder in sys.argv[1:3])
    files = sorted(volumes.glob("*.nii*"))
    different = 0
    for file in files:
        other = predicted / file.name.replace(".nii.gz", "").replace(".nii", "")
        other = next(path for path in (other.with_name(other.name + ".nii.gz"), other.with_name(other.name + ".nii")) if path.exists())
        ours, theirs = nibabel.load(other), nibabel.load(file)
        for name, field in FIELDS.items():
            if not numpy.array_equal(field(ours), field(theirs)):
                different += 1
                print(f"{file.name}: {name} {field(ours)}, was {field(theirs)}")
    print(f"{len(files)} volumes, {different} differences")
    sys.exit(int(different > 0 or not files))


if __name__ == "__main__":
    main()
