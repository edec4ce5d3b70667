"""Cuts volumes into axial pictures for peer_unet.py: foreground merged, slices without any left out, whole patients on each side.

    segft data make phantom-volume --count 40 --out volumes
    python benches/phantom_slices.py --data volumes --out slices --judged 8
    python peer_unet.py --train slices/train --val slices/val --n 100000 --minutes 5 --size 128

Grey levels are stretched from the 0.5 to the 99.5 percentile of each volume. Needs numpy, nibabel and pillow.
"""

import argparse
from pathlib import Path

import nibabel
import numpy
from PIL import Image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with images/ and labels/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judged", type=int, required=True, help="volumes that judge: the last by name")
    given = parser.parse_args()
    images = sorted((given.data / "images").glob("*.nii*"))
    for number, path in enumerate(images):
        side = "val" if number >= len(images) - given.judged else "train"
        volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
        labels = nibabel.as_closest_canonical(nibabel.load(given.data / "labels" / path.name)).get_fdata() > 0
        low, high = numpy.percentile(volume, [0.5, 99.5])
        grey = (numpy.clip((volume - low) / (high - low), 0, 1) * 255).astype(numpy.uint8)
        for slice_ in numpy.flatnonzero(labels.any(axis=(0, 1))):
            for kind, plane in (("images", grey), ("masks", labels.astype(numpy.uint8) * 255)):
                to = given.out / side / kind / f"{path.name.split('.')[0]}_{slice_:03}.png"
                to.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(numpy.ascontiguousarray(plane[:, :, slice_].T[::-1])).save(to)


if __name__ == "__main__":
    main()
