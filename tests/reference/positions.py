"""Reference values for tests/parity.rs: SAM's tables of positions at other sizes, from PyTorch.

    pip install torch
    python tests/reference/positions.py > tests/reference/positions.json

Absolute positions [1, s, s, C] are interpolated bilinearly, relative ones [2 s - 1, d] linearly, as get_rel_pos of the
official implementation does it; neither with antialiasing.
"""

import json

import torch
from torch.nn.functional import interpolate

GRID, EMBED, HEAD = 4, 8, 4


def main():
    torch.manual_seed(20240718)
    absolute = torch.randn(1, GRID, GRID, EMBED)
    relative = {name: torch.randn(2 * GRID - 1, HEAD) for name in ("rel_pos_h", "rel_pos_w")}

    def flat(tensor):
        return [float(f"{v:.9g}") for v in tensor.flatten().tolist()]

    def at(side):
        pos = interpolate(absolute.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False)
        rows = {name: interpolate(table.T[None], size=2 * side - 1, mode="linear", align_corners=False)[0].T
                for name, table in relative.items()}
        return {"grid": side, "pos_embed": flat(pos.permute(0, 2, 3, 1)),
                **{name: flat(table) for name, table in rows.items()}}

    own = {"grid": GRID, "pos_embed": flat(absolute), **{name: flat(table) for name, table in relative.items()}}
    lines = ",\n".join(json.dumps(at(side)) for side in (3, 6))
    print(f'{{"torch": "{torch.__version__}",\n"from": {json.dumps(own)},\n"to": [\n{lines}\n]}}')


main()
