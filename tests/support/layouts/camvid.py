"""CamVid's folders with frames and labels of blocks, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 12  # 11 is unlabeled


def write_camvid(root: Path, *, count: int = 4, size: tuple[int, int] = (36, 48), seed: int = 0) -> Path:
    """`<root>/CamVid/{train,val,test}` with `count` frames each and their labels in `{...}annot`; gives the root.

    A frame shows its labels: gray level 20 times the class.
    """
    rng = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for number in range(count):
            labels = rng.integers(0, CLASSES, (3, 4)).astype(np.uint8)
            labels[0, 0] = CLASSES - 1  # something to ignore
            labels = labels.repeat(size[0] // 3, 0).repeat(size[1] // 4, 1)
            name = f"0016E5_{1000 * (1 + len(split)) + number:05d}.png"
            for folder, pixels in ((split, 20 * labels[..., None].repeat(3, 2)), (f"{split}annot", labels)):
                (root / "CamVid" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / "CamVid" / folder / name)
    return root
