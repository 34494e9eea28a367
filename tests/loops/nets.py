"""A small two-head network, batches for it, and a loop that trains it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

SIZE = 16
STEPS, EPOCHS = 24, 4


class TwoHeads(nn.Module):
    """Image (B, 3, 16, 16) to {"shape": (B, 3), "depth": (B, 1, 16, 16)}."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.shape = nn.Linear(width, 3)
        self.depth = nn.Conv2d(width, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        return {"shape": self.shape(features.mean((2, 3))), "depth": self.depth(features)}


def two_heads(seed: int = 0, dtype: torch.dtype = torch.float64) -> TwoHeads:
    torch.manual_seed(seed)
    return TwoHeads().to(dtype)


def example(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(1, 3, SIZE, SIZE, dtype=dtype)


def batches(epoch: int, count: int = STEPS // EPOCHS, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(count):
        yield torch.randn(8, 3, SIZE, SIZE, generator=generator, dtype=dtype)


def loss_of(outputs: dict[str, Tensor], image: Tensor) -> Tensor:
    classes = (image.mean((1, 2, 3)) > 0).long()
    depth = (outputs["depth"] - image.mean(1, keepdim=True)).square().mean()
    return nn.functional.cross_entropy(outputs["shape"], classes) + depth


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def adam(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: value == 0 for name, value in model.named_parameters()}
