"""Makes the two sets of "CT, one organ" in RESULTS.md from two CTs that TotalSegmentator ships with its tests.

    python benches/ct_organ.py --data totalsegmentator/tests/reference_files --out ct-organ
    segft train --dataset ct-organ/vertebra/train.csv --test ct-organ/vertebra/test.csv …

`aorta`: an angiography of the chest (1.5 mm, 180 x 189 mm), lower part of the vessel to learn, upper part to validate; tested on
another patient's CT of the belly without contrast medium (3 mm, 366 x 303 mm). `vertebra`: the other way round, the spine of
the belly CT, lower part to learn, upper part to validate; tested on the slices of the angiography through T12, the only vertebra with a mask there.
Needs numpy and nibabel.
"""

import argparse
from pathlib import Path

import nibabel
import numpy

PARTS = [("lower", "train"), ("upper", "val")]


def write(folder, learned, parts, test):
    """A folder with train.csv and test.csv; `parts` are ranges of slices, `learned` and `test` are image, mask pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"train": ["image,mask,group,split"], "test": ["image,mask"]}
    for (name, side), part in zip(PARTS, parts):
        for kind, volume in zip(("image", "mask"), learned):
            nibabel.save(volume.slicer[:, :, part], folder / f"{kind}_{name}.nii.gz")
        rows["train"].append(f"image_{name}.nii.gz,mask_{name}.nii.gz,{name},{side}")
    for kind, volume in zip(("image", "mask"), test):
        nibabel.save(volume, folder / f"{kind}_other.nii.gz")
    rows["test"].append("image_other.nii.gz,mask_other.nii.gz")
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="TotalSegmentator's tests/reference_files")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    read = lambda name: nibabel.load(given.data / name)
    chest = "aorta_report/test_result/models/"
    angiography, t12 = read(chest + "ct_cropped.nii.gz"), read(chest + "vertebrae_T12.nii.gz")

    organs = read("example_seg.nii.gz")
    aorta = nibabel.Nifti1Image((numpy.asanyarray(organs.dataobj) == 52).astype("uint8"), organs.affine)
    test = (read("example_ct_sm.nii.gz"), aorta)
    write(given.out / "aorta", (angiography, read(chest + "aorta.nii.gz")), [slice(0, 123), slice(123, None)], test)

    spine = (read("example_ct.nii.gz"), read("spine_report/example_ct_report/totalseg.nii.gz"))
    test = (angiography.slicer[:, :, 13:25], t12.slicer[:, :, 13:25])
    write(given.out / "vertebra", spine, [slice(52, 97), slice(97, None)], test)


if __name__ == "__main__":
    main()
