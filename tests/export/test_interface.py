"""Pictures in and raw outputs back in arrays: what the torch form of the same interface gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compactmtl.config.target import OnnxConfig
from compactmtl.data.base import Preprocessing
from compactmtl.data.images import normalize, normalize_array
from compactmtl.export.interface import feed, restore
from compactmtl.export.processing import Interface

SIZE = (5, 7)
PREPROCESSING = Preprocessing(SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def image() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE), np.uint8)


def test_every_value_of_a_pixel_is_normalized_as_in_training() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    expected = normalize(torch.from_numpy(ramp), PREPROCESSING).numpy()
    # one rounding more or less, where a compiler fuses the product and the sum
    np.testing.assert_allclose(normalize_array(ramp, PREPROCESSING), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("baked", [True, False])
def test_an_image_is_fed_as_verification_feeds_it(baked: bool) -> None:
    interface = Interface.of(OnnxConfig(preprocess=baked), {}, PREPROCESSING)
    expected = interface.feed(normalize(torch.from_numpy(image())[None], PREPROCESSING)).numpy()
    found = feed(image(), PREPROCESSING, baked=baked)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # exact where baked: bytes


@pytest.mark.parametrize("after", [None, "argmax", "softmax", "sigmoid"])
def test_outputs_come_back_as_verification_has_them(after: str | None) -> None:
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)) * 5
    logits[0, 0] = -200  # a probability of 0 in float32
    given = {
        None: logits,
        "argmax": logits.argmax(1),
        "softmax": logits.softmax(1),
        "sigmoid": logits.sigmoid(),
    }[after]
    interface = Interface(None, {} if after is None else {"it": after}, {"it": 4})
    expected = interface.restore({"it": given})["it"].numpy()
    np.testing.assert_allclose(restore(given.numpy(), after, 4), expected, rtol=1e-5, atol=1e-6)
