"""MNIST in the files it comes in, with digits that show their class as a gray level, for tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["keras", "arrays", "idx"]


def write_multimnist(root: Path, *, count: int = 10, form: Form = "keras", seed: int = 0) -> Path:
    """MNIST with `count` digits in each of val and test, and more in train; gives the root.

    Form: keras is mnist.npz, arrays an .npz of images and labels sorted by class, idx the four gzipped files.
    """
    train, test = digits((10 if form == "arrays" else 6) * count, seed), digits(count, seed + 1)
    root.mkdir(parents=True, exist_ok=True)
    if form == "keras":
        named = dict(zip(("x_train", "y_train", "x_test", "y_test"), (*train, *test), strict=True))
        np.savez(root / "mnist.npz", **named)  # type: ignore[arg-type]
    elif form == "arrays":
        order = np.argsort(train[1], kind="stable")
        np.savez(root / "mnist10k.npz", images=train[0][order], labels=train[1][order])
    else:
        for part, (images, labels) in (("train", train), ("t10k", test)):
            for name, array in (("images-idx3", images), ("labels-idx1", labels)):
                path = root / "MNIST" / "raw" / f"{part}-{name}-ubyte.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(gzip.compress(idx(array)))
    return root


def digits(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 28, 28), gray level 25 times the class plus a little noise, and classes (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
    images = 25 * labels[:, None, None] + rng.integers(0, 4, (count, 28, 28)).astype(np.uint8)
    return images.astype(np.uint8), labels


def idx(array: NDArray[Any]) -> bytes:
    """An array of bytes in the idx format."""
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )
