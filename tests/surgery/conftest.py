"""Networks with dead channels, small enough to check by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


class ResidualNet(nn.Module):
    """Two residual stages with padding, batch norm, a downsample and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 1, stride=2)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.pixel = nn.Conv2d(16, 3, 1)
        self.vector = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        x = torch.relu_(x + y)
        x = torch.relu(self.down(x) + self.conv3(x))
        return {"pixel": self.pixel(x), "vector": self.vector(x.mean((2, 3)))}


@pytest.fixture
def net() -> ResidualNet:
    torch.manual_seed(0)
    model = ResidualNet().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.uniform_(-0.3, 0.0)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(0.1, 0.6)  # positive, as is -mean: a dead filter's ReLU is no zero
    return model


@pytest.fixture
def image() -> tuple[Tensor]:
    return (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double(),)
