"""The text of a module of a user's own: a data set of pictures, depth and a camera's numbers, and a network that takes all three."""

from __future__ import annotations

MODULE = '''
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from compactmtl.tasks import TargetSpec

COUNT = {"train": 12, "val": 5}


class Rooms:
    """Boxes in front of a wall, seen by a color and a depth camera whose focal length differs from sample to sample."""

    def __init__(self, config, split):
        self.config, self.split = config, split
        self.specs = {"kind": TargetSpec("mask", classes=("wall", "box")), "focal": TargetSpec("scalar", unit="px", mean=1.0, std=0.3)}

    def __len__(self):
        return COUNT[self.split]

    def __getitem__(self, index):
        draw = np.random.default_rng([index, self.split == "val"])
        height, width = self.config.size
        top, left = draw.integers(2, height // 2), draw.integers(2, width // 2)
        box = np.zeros((height, width), bool)
        box[top : top + height // 3, left : left + width // 3] = True
        rgb = draw.integers(0, 90, (3, height, width))
        rgb[0][box] += 120
        depth = np.where(box, 60, 200) + draw.integers(0, 20, (height, width))
        focal = float(draw.uniform(0.5, 1.5))
        given = {
            "rgb": torch.from_numpy(rgb.astype(np.uint8)),
            "depth": torch.from_numpy(depth.astype(np.uint8)[None]),
            "camera": torch.tensor([focal, width / 2, height / 2]),
        }
        return {"inputs": given, "targets": {"kind": torch.from_numpy(box.astype(np.int64)), "focal": torch.tensor(focal)}}

    def identifier(self, index):
        return f"{self.split}-{index}"


def block(inputs, outputs, stride=2):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Fused(nn.Module):
    """Color and depth join after a layer each; the camera's numbers join in the head of one value."""

    def __init__(self, width=16):
        super().__init__()
        self.color, self.range = block(3, width), block(1, width)
        self.encoder = nn.Sequential(block(2 * width, 2 * width), block(2 * width, 2 * width, 1))
        self.camera = nn.Linear(3, 8)
        self.kind, self.focal = nn.Conv2d(2 * width, 2, 1), nn.Linear(2 * width + 8, 1)

    def forward(self, rgb, depth, camera):
        features = self.encoder(torch.cat([self.color(rgb), self.range(depth)], 1))
        kind = F.interpolate(self.kind(features), size=rgb.shape[-2:], mode="bilinear", align_corners=False)
        joined = torch.cat([features.mean((2, 3)), F.relu(self.camera(camera))], 1)
        return {"kind": kind, "focal": self.focal(joined)}


class Enclosed(nn.Module):
    """All that is shared lies in the encoder, which takes color and depth; each head reads its features alone."""

    def __init__(self, width=16):
        super().__init__()
        self.encoder = Pair(width)
        self.kind, self.focal = nn.Conv2d(width, 2, 1), nn.Linear(width, 1)

    def forward(self, rgb, depth, camera):
        features = self.encoder(rgb, depth, camera)
        kind = F.interpolate(self.kind(features), size=rgb.shape[-2:], mode="bilinear", align_corners=False)
        return {"kind": kind, "focal": self.focal(features.mean((2, 3)))}


class Pair(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.color, self.range, self.camera = block(3, width), block(1, width), nn.Linear(3, width)

    def forward(self, rgb, depth, camera):
        return self.color(rgb) + self.range(depth) + self.camera(camera)[:, :, None, None]


class Half(Fused):
    """Leaves the depth unread."""

    def forward(self, rgb, depth, camera):
        return super().forward(rgb, torch.zeros_like(rgb[:, :1]), camera)


class Picture(nn.Module):
    """Takes one picture."""

    def __init__(self):
        super().__init__()
        self.kind, self.focal = nn.Conv2d(3, 2, 1), nn.Linear(3, 1)

    def forward(self, image):
        return {"kind": self.kind(image), "focal": self.focal(image.mean((2, 3)))}
'''

RECIPE = """
data:
  name: "own_inputs:Rooms"
  size: [32, 48]
  batch_size: 4
  inputs:
    rgb: {}
    depth: {channels: 1, mean: [0.5], std: [0.25]}
    camera: {kind: vector, channels: 3, mean: [1.0, 24.0, 16.0], std: [0.3, 1.0, 1.0]}
tasks:
  kind: {kind: segmentation}
  focal: {kind: regression}
model: {factory: "own_inputs:Fused"}
train: {epochs: 3, optimizer: {lr: 2e-3}}
sparsity: {scope: model, selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 1, min_channels: 4}}
surgery: {align: 4}
"""

TARGET = """
backend: onnxruntime
latency: {warmup: 1, repeats: 3}
"""
