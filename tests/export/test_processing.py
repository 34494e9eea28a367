"""Pre- and postprocessing in the model file, and the way back."""

from __future__ import annotations

import pytest
import torch

from compactmtl.data.base import Preprocessing
from compactmtl.data.images import normalize
from compactmtl.export.processing import Deployed, Interface

PREPARE = Preprocessing(size=(4, 6))


class Same(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"t": image}


def interface(kind: str | None = None) -> Interface:
    return Interface(PREPARE, {} if kind is None else {"t": kind}, {"t": 3})


def test_pixels_come_back_exactly_and_are_normalized_as_the_loader_does() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    fed = interface().feed(normalize(pixels, PREPARE))
    torch.testing.assert_close(fed, pixels.permute(0, 2, 3, 1), rtol=0, atol=0)
    found = Deployed(Same(), PREPARE, {})(fed)["t"]
    torch.testing.assert_close(found, normalize(pixels, PREPARE), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["argmax", "softmax"])
def test_restored_logits_decode_to_the_same_classes(kind: str) -> None:
    logits = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 20
    given = Deployed(Same(), None, {"t": kind})(logits)
    restored = interface(kind).restore(given)["t"]
    assert torch.equal(restored.argmax(1), logits.argmax(1))
    if kind == "softmax":
        torch.testing.assert_close(restored.softmax(1), logits.softmax(1))


def test_restored_probabilities_are_the_logits() -> None:
    logits = torch.linspace(-8, 8, 48).reshape(2, 3, 8)
    given = Deployed(Same(), None, {"t": "sigmoid"})(logits)
    # 1 - p has seven digits, of which p near 1 leaves four
    torch.testing.assert_close(interface("sigmoid").restore(given)["t"], logits, rtol=1e-3, atol=1e-3)


def test_nothing_baked_in_is_the_model_itself() -> None:
    model = Same()
    assert Interface(None, {}, {}).wrap(model) is model


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_any_number_of_channels_is_normalized_in_the_file(channels: int) -> None:
    prepare = Preprocessing((8, 8), tuple(0.1 * n for n in range(channels)), (0.3,) * channels)
    pixels = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
    given = Interface(prepare, {}, {})
    fed = given.feed(normalize(pixels, prepare))
    assert fed.shape == (2, 8, 8, channels) and torch.equal(fed, pixels.permute(0, 2, 3, 1))
    found = given.wrap(Same())(fed)["t"]
    torch.testing.assert_close(found, normalize(pixels, prepare), rtol=1e-6, atol=1e-6)
