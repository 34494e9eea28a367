"""Cityscapes' classes as tables: label ids to 19 or 7 classes, and part ids to 10.

Sources: Cordts et al., arXiv:1604.01685 (labels); de Geus et al., arXiv:2004.07944 (panoptic parts).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IGNORE = 255

# Label id, class of 19, class of 7. The other ids (void, and what the benchmark leaves out) are ignored by both.
_TABLE: tuple[tuple[int, str, str], ...] = (
    (7, "road", "flat"),
    (8, "sidewalk", "flat"),
    (11, "building", "construction"),
    (12, "wall", "construction"),
    (13, "fence", "construction"),
    (17, "pole", "object"),
    (19, "traffic light", "object"),
    (20, "traffic sign", "object"),
    (21, "vegetation", "nature"),
    (22, "terrain", "nature"),
    (23, "sky", "sky"),
    (24, "person", "human"),
    (25, "rider", "human"),
    (26, "car", "vehicle"),
    (27, "truck", "vehicle"),
    (28, "bus", "vehicle"),
    (31, "train", "vehicle"),
    (32, "motorcycle", "vehicle"),
    (33, "bicycle", "vehicle"),
)
_LAST_ID = 33
_UNLABELED_ID = 255  # what some tools write for id -1

CLASSES_19 = tuple(name for _, name, _ in _TABLE)
CLASSES_7 = tuple(dict.fromkeys(group for _, _, group in _TABLE))
CLASS_NAMES = {7: CLASSES_7, 19: CLASSES_19}

# Person and rider have parts 1 to 4; car, truck and bus 1 to 5.
PARTS = (
    "background",
    "torso",
    "head",
    "arms",
    "legs",
    "windows",
    "wheels",
    "lights",
    "license plate",
    "chassis",
)
_PARTS_OF = {24: (0, 4), 25: (0, 4), 26: (4, 5), 27: (4, 5), 28: (4, 5)}  # label id: first part less 1, count


def label_table(classes: int) -> NDArray[np.uint8]:
    """Class index of 19 or 7 for each label id 0 to 33, and 255; 255 where it is ignored."""
    table = np.full(_LAST_ID + 1, IGNORE, np.uint8)
    for index, (label, _, group) in enumerate(_TABLE):
        table[label] = index if classes == 19 else CLASSES_7.index(group)
    return table


def without_unlabeled(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Label ids with 255, which some tools write for -1, as 0."""
    return np.where(labels == _UNLABELED_ID, 0, labels)


def parts_of(uids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Part classes, of PARTS, of panoptic-parts ids: label id * 100000 + instance * 100 + part where there is a part.

    Shorter ids (a label alone, or with an instance) have no part and are background, as are parts of other labels.
    """
    label, part = uids // 100_000, uids % 100
    parts = np.zeros(uids.shape, np.uint8)
    for train_id, (before, count) in _PARTS_OF.items():
        here = (label == train_id) & (part >= 1) & (part <= count)
        parts[here] = (before + part[here]).astype(np.uint8)
    return parts
