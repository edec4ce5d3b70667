"""Facts about NIfTI files as nibabel sees them, for tests/volumes.rs.

    python tests/reference/volumes.py FOLDER > tests/reference/volumes.json

FOLDER holds the files (the `nifti` folder of the shared data); names in the result are relative to it. Files that
hold no 3-D or 4-D image of real numbers are listed as "refused"; a dozen files of a folder are enough. Made with
nibabel 5.4.2.
"""

import collections
import json
import logging
import pathlib
import sys

import nibabel
import numpy

logging.disable(logging.CRITICAL)
numpy.seterr(all="ignore")


def facts(path):
    image = nibabel.load(path)
    if not isinstance(image, (nibabel.Nifti1Pair, nibabel.Nifti2Pair)):
        return "refused"
    dtype = image.get_data_dtype()
    if dtype.kind not in "uif" or dtype.itemsize > 8 or any(n != 1 for n in image.shape[4:]):
        return "refused"
    data = numpy.asarray(image.dataobj, dtype=numpy.float64)
    data = data.reshape((data.shape + (1, 1, 1))[:4])
    flat = data.ravel(order="F")
    finite = flat[numpy.isfinite(flat)]
    distinct = numpy.unique(data) if dtype.kind in "ui" else None
    few = distinct is not None and len(distinct) <= 256 and bool(numpy.all(distinct == numpy.round(distinct)))
    n = data[..., 0].size
    places = sorted({0, n // 5, n // 2, n - 2 if n > 1 else 0, n - 1})
    return {
        "shape": list(data.shape[:3]),
        "spacing_mm": [float(z) for z in (image.header.get_zooms() + (1, 1, 1))[:3]],
        "affine": image.affine.tolist(),
        "orientation": "".join(nibabel.aff2axcodes(image.affine)),
        "dtype": dtype.name,
        "n_channels": data.shape[3],
        "min": float(finite.min()),
        "max": float(finite.max()),
        "mean": float(finite.mean()),
        "n_nonfinite": int(flat.size - finite.size),
        "labels": [int(v) for v in distinct] if few else None,
        # Some voxels of the first channel, first axis fastest.
        "voxels": [[int(p), float(flat[p])] for p in places if numpy.isfinite(flat[p])],
    }


def main():
    folder = pathlib.Path(sys.argv[1])
    seen, of_folder = {}, collections.Counter()
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz")):
            continue
        of_folder[path.parent] += 1
        if of_folder[path.parent] > 12:
            continue
        try:
            found = facts(path)
        except Exception:
            found = "refused"
        seen[path.relative_to(folder).as_posix()] = found
    lines = [f" {json.dumps(name)}: {json.dumps(found)}" for name, found in seen.items()]
    print("{\n" + ",\n".join(lines) + "\n}")


main()
