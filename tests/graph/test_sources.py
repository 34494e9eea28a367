"""Where an output's channels come from, and which of them a cut of the parameters leaves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.graph.sources import sources_of_outputs


class Two(nn.Module):
    """A residual map, and a concatenation of two layers' maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.norm(self.stem(image)).relu()
        summed = x + self.left(x)
        return [summed, torch.cat([summed, self.right(summed)], 1)]


def test_channels_are_followed_through_sums_and_concatenations() -> None:
    first, second = sources_of_outputs(Two(), (torch.randn(1, 3, 8, 8),), "encoder.")
    assert len(first.entries) == 4 and len(second.entries) == 6
    # what goes of a sum goes of all its terms, whichever of them an entry names
    names = {"encoder.stem.weight": 4, "encoder.right.weight": 2}
    kept = {(name, 0): np.delete(np.arange(size), 1) for name, size in names.items()}
    kept |= {
        (f"encoder.{name}", 0): np.array([0, 2, 3])
        for name in ("stem.bias", "norm.weight", "norm.bias", "left.weight", "left.bias")
    }
    kept |= {
        ("encoder.left.weight", 1): np.array([0, 2, 3]),
        ("encoder.right.weight", 1): np.array([0, 2, 3]),
    }
    kept |= {("encoder.right.bias", 0): np.array([0])}
    left, after = first.left(kept)
    assert left == [0, 2, 3]
    assert [entry and entry[2] for entry in after.entries] == [0, 1, 2]
    left, after = second.left(kept)
    assert left == [0, 2, 3, 4]
    again, _ = after.left({key: np.array([0, 1]) for key in kept if key[1] == 0 and "right" not in key[0]})
    assert again == [0, 1, 3]


def test_a_channel_that_no_parameter_holds_stays() -> None:
    class Same(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image * 2

    (only,) = sources_of_outputs(nn.Sequential(Same()), (torch.randn(1, 3, 4, 4),))
    assert only.entries == (None, None, None)
    assert only.left({("x", 0): np.array([1])})[0] == [0, 1, 2]
