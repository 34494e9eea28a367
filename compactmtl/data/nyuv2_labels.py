"""NYUv2's classes and its official split, as tables.

894 labels of the file -> 40 classes: Gupta et al., "Perceptual Organization and Recognition of Indoor Scenes from RGB-D
Images", CVPR 2013. 40 -> 13: Couprie et al., arXiv:1301.3572. The split of 795 and 654 frames: Silberman et al., ECCV
2012 (splits.mat).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
LABELS = 894  # in the file, from 1; 0 is unlabeled
FRAMES = 1449

# Class of 40, its class of 13, and the file's label of the same name; the last three collect what is left.
_TABLE: tuple[tuple[str, str, int | None], ...] = (
    ("wall", "wall", 21),
    ("floor", "floor", 11),
    ("cabinet", "furniture", 3),
    ("bed", "bed", 157),
    ("chair", "chair", 5),
    ("sofa", "sofa", 83),
    ("table", "table", 19),
    ("door", "wall", 28),
    ("window", "window", 59),
    ("bookshelf", "furniture", 88),
    ("picture", "picture", 64),
    ("counter", "furniture", 7),
    ("blinds", "window", 80),
    ("desk", "table", 36),
    ("shelves", "furniture", 42),
    ("curtain", "window", 89),
    ("dresser", "furniture", 169),
    ("pillow", "objects", 119),
    ("mirror", "objects", 122),
    ("floor mat", "floor", 143),
    ("clothes", "objects", 141),
    ("ceiling", "ceiling", 4),
    ("books", "books", 85),
    ("refridgerator", "furniture", 17),
    ("television", "tv", 172),
    ("paper", "objects", 15),
    ("towel", "objects", 135),
    ("shower curtain", "objects", 123),
    ("box", "objects", 26),
    ("whiteboard", "objects", 45),
    ("person", "objects", 331),
    ("night stand", "furniture", 158),
    ("toilet", "objects", 124),
    ("sink", "objects", 24),
    ("lamp", "objects", 144),
    ("bathtub", "objects", 136),
    ("bag", "objects", 55),
    ("otherstructure", "objects", None),
    ("otherfurniture", "furniture", None),
    ("otherprop", "objects", None),
)
_OTHER_STRUCTURE = """
    8 25 33 38 51 53 57 58 62 65 79 94 104 112 134 153 215 216 223 225 238 241 242 256 295 301 339 342 354
    363 372 380 392 408 412 453 456 463 477 497 541 550 553 567 573 582 591 609 612 615 642 645 657 658 659
    663 667 668 686 700 702 777 778 782 850 861 868 874
"""
_OTHER_FURNITURE = """
    12 43 48 50 87 106 111 161 163 174 183 204 214 219 221 224 236 262 278 291 298 313 343 344 356 359 373
    393 401 414 418 419 430 443 444 447 448 457 458 460 462 475 479 485 486 493 494 498 499 509 510 515 521
    524 540 549 551 554 556 558 576 580 608 625 703 734 770 772 797 800 803 804 813 814 815 820 829 835 858
    863 882 892
"""
_TEST = """
    1-2 9 14-18 21 28-43 46-47 56-57 59-63 76-79 84-91 117-119 125-129 131-134 137 153-155 167-169 171-176
    180-202 207-212 220-222 250 264 271-273 279-285 296-302 310-312 315-317 325-335 351-352 355-364 384-390
    395-397 411-414 430-435 441-448 462-466 469-477 508-513 515-526 531-533 537-539 549-551 555-571 579-583
    591-594 603-607 612-613 617-621 633-638 644-645 650-651 656-658 663-664 668-673 676-681 686-690 693-694
    697-699 706-713 717-718 724-728 731-734 743-744 759-787 800-804 810-814 821-823 833-846 850-852 857-862
    869-871 906-908 917-919 926-928 932-935 945-947 959-962 965-967 970-977 991-995 1001-1004 1010-1012
    1021-1023 1032-1034 1038-1039 1048-1049 1052-1053 1057-1058 1075-1084 1088-1096 1098-1104 1106-1109
    1117-1119 1123-1131 1135-1136 1144-1158 1162-1167 1170-1171 1174-1176 1179-1184 1192-1196 1201-1212
    1216-1220 1226-1230 1233-1235 1247-1250 1254-1265 1275-1280 1285-1295 1297-1299 1302-1308 1314-1315
    1329-1332 1335-1340 1347-1349 1353-1356 1364-1365 1368-1369 1384-1391 1394-1401 1407-1414 1421-1424
    1430-1433 1441-1449
"""

CLASSES_40 = tuple(name for name, _, _ in _TABLE)
CLASSES_13 = tuple(sorted({group for _, group, _ in _TABLE}))
CLASSES_41 = ("unlabeled", *CLASSES_40)
CLASS_NAMES = {13: CLASSES_13, 40: CLASSES_40, 41: CLASSES_41}
# The file's labels whose names are those of classes: what a file is recognized by.
NAMED_LABELS = {label: name for name, _, label in _TABLE if label is not None}


def label_table(classes: int) -> NDArray[np.uint8]:
    """Class index of each of the file's labels 0 to 894, for 13, 40 or 41 classes; unlabeled is ignored, or 0 of 41."""
    table = np.full(LABELS + 1, CLASSES_40.index("otherprop"), np.uint8)
    for text, name in ((_OTHER_STRUCTURE, "otherstructure"), (_OTHER_FURNITURE, "otherfurniture")):
        table[[int(word) for word in text.split()]] = CLASSES_40.index(name)
    for label, name in NAMED_LABELS.items():
        table[label] = CLASSES_40.index(name)
    table[0] = IGNORE
    return class_table(classes)[table]


def class_table(classes: int) -> NDArray[np.uint8]:
    """Class index of 13, 40 or 41 for each index of the 40 classes, and for 255, which is unlabeled."""
    table = np.full(256, IGNORE, np.uint8)
    if classes == 13:
        table[:40] = [CLASSES_13.index(group) for _, group, _ in _TABLE]
    else:
        table[:40] = np.arange(40) + (classes == 41)
    table[IGNORE] = 0 if classes == 41 else IGNORE
    return table


def official_split() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the frames, from 0: 795 to train and 654 to test."""
    test: list[int] = []
    for word in _TEST.split():
        first, _, last = word.partition("-")
        test += range(int(first) - 1, int(last or first))
    held = set(test)
    return tuple(i for i in range(FRAMES) if i not in held), tuple(test)
