"""CelebAMask-HQ's folders and lists with drawn faces, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips",
    "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby",
    "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male",
    "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin",
    "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
BOXES = {  # part: top, left, bottom, right in eighths of the picture
    "skin": (1, 1, 7, 7),
    "nose": (4, 3, 5, 5),
    "l_eye": (3, 2, 4, 3),
    "hair": (0, 1, 2, 7),
    "neck": (7, 3, 8, 5),
}
ORIGINALS = {"train": 100, "val": 162771, "test": 182638}  # CelebA numbers that lie in each split


def write_celebamask(
    root: Path, *, count: int = 4, side: int = 64, seed: int = 0, lists: bool = True
) -> Path:
    """`<root>/CelebAMask-HQ` with `count` faces a split, their parts, attributes and mapping; gives the root.

    Image and mask have different sizes, as in the real set, and a face numbered 3, 7, ... has no nose file. Without
    `lists` there are neither attributes nor the mapping.
    """
    rng = np.random.default_rng(seed)
    folder = root / "CelebAMask-HQ"
    (folder / "CelebA-HQ-img").mkdir(parents=True)
    attributes = [str(3 * count), " ".join(ATTRIBUTES)]
    mapping = ["idx\torig_idx\torig_file"]
    for number in range(3 * count):
        split = ("train", "val", "test")[number % 3]
        picture = rng.integers(0, 256, (2 * side, 2 * side, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "CelebA-HQ-img" / f"{number}.jpg")
        masks = folder / "CelebAMask-HQ-mask-anno" / str(number // 2000)
        masks.mkdir(parents=True, exist_ok=True)
        for name, box in BOXES.items():
            if name == "nose" and number % 4 == 3:
                continue
            top, left, bottom, right = (edge * side // 8 for edge in box)
            mask = np.zeros((side, side, 3), np.uint8)
            mask[top:bottom, left:right] = 255
            Image.fromarray(mask).save(masks / f"{number:05d}_{name}.png")
        values = rng.choice(("1", "-1"), len(ATTRIBUTES))
        attributes.append(f"{number}.jpg  " + " ".join(values))
        original = ORIGINALS[split] + number
        mapping.append(f"{number}\t{original}\t{original + 1:06d}.jpg")
    if lists:
        (folder / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(attributes) + "\n")
        (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping) + "\n")
    return root
