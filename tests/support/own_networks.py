"""The text of a module of a user's own with networks for `model.factory`: good ones, and one for each rule that may be broken.

The data set is `scenes`, whose tasks are segmentation (11 classes) and depth.
"""

CLASSES = 11

NETWORKS = '''
import itertools

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 11


def block(inputs, outputs, stride=2):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Head(nn.Module):
    """Reads the features alone."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.hidden = block(inputs, 16, 1)
        self.last = nn.Conv2d(16, channels, 1)

    def forward(self, features, size):
        return F.interpolate(self.last(self.hidden(features)), size=size, mode="bilinear", align_corners=False)


class Shown(nn.Module):
    """Has `encoder` and `heads`."""

    def __init__(self, width=16):
        super().__init__()
        self.encoder = nn.Sequential(block(3, width), block(width, 2 * width))
        self.heads = nn.ModuleDict({"segmentation": Head(2 * width, CLASSES), "depth": Head(2 * width, 1)})

    def forward(self, image):
        features = self.encoder(image)
        return {name: head(features, image.shape[-2:]) for name, head in self.heads.items()}


class Named(nn.Module):
    """The same network under names of its own, whose forward gives a tuple."""

    def __init__(self, width=16):
        super().__init__()
        self.backbone = nn.Sequential(block(3, width), block(width, 2 * width))
        self.decoder = nn.ModuleDict({"seg": Head(2 * width, CLASSES), "z": Head(2 * width, 1)})

    def forward(self, image):
        features = self.backbone(image)
        size = image.shape[-2:]
        return self.decoder["seg"](features, size), self.decoder["z"](features, size)


class Pooled(Shown):
    """Normalizes a map of one pixel by its own statistics."""

    def __init__(self, width=16):
        super().__init__(width)
        self.norm = nn.InstanceNorm2d(2 * width)

    def forward(self, image):
        features = self.encoder(image)
        features = features + self.norm(features.mean((2, 3), keepdim=True))
        return {name: head(features, image.shape[-2:]) for name, head in self.heads.items()}


class Closed(nn.Module):
    """A network that shows no parts."""

    def __init__(self, width=16, hidden=16):
        super().__init__()
        self.down = nn.Sequential(block(3, width), block(width, 2 * width))
        self.mix = block(2 * width, hidden, 1)
        self.last = nn.Conv2d(hidden, CLASSES + 1, 1)

    def forward(self, image):
        x = F.interpolate(self.last(self.mix(self.down(image))), size=image.shape[-2:], mode="bilinear")
        return {"segmentation": x[:, :CLASSES], "depth": x[:, CLASSES:]}


class Neck(Shown):
    """Shared layers between encoder and heads."""

    def __init__(self):
        super().__init__()
        self.neck = block(32, 32, 1)

    def forward(self, image):
        features = self.neck(self.encoder(image))
        return {name: head(features, image.shape[-2:]) for name, head in self.heads.items()}


class Twice(Shown):
    """Calls its encoder twice."""

    def forward(self, image):
        features = self.encoder(image) + self.encoder(image.flip(3)).flip(3)
        return {name: head(features, image.shape[-2:]) for name, head in self.heads.items()}


class Changed(Shown):
    """Changes what the heads give."""

    def forward(self, image):
        return {name: 2 * output for name, output in super().forward(image).items()}


# Each breaks one rule.


class Lists(Shown):
    def forward(self, image):
        return list(super().forward(image).values())


class OtherNames(Shown):
    def forward(self, image):
        outputs = super().forward(image)
        return {"seg": outputs["segmentation"], "depth": outputs["depth"]}


class Extra(Shown):
    def forward(self, image):
        outputs = super().forward(image)
        return {**outputs, "features": outputs["depth"]}


class Small(Shown):
    def forward(self, image):
        return {name: output[..., ::2, ::2] for name, output in super().forward(image).items()}


class Classes(Shown):
    def forward(self, image):
        outputs = super().forward(image)
        return {**outputs, "segmentation": outputs["segmentation"].argmax(1)}


class Unbatched(Shown):
    def forward(self, image):
        return {name: output[:1] for name, output in super().forward(image).items()}


class Empty(nn.Module):
    def forward(self, image):
        return {"segmentation": image.repeat(1, 2, 1, 1), "depth": image[:, :1]}


class Frozen(Shown):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Detached(Shown):
    def forward(self, image):
        outputs = super().forward(image)
        return {**outputs, "depth": outputs["depth"].detach()}


class Dropping(Shown):
    def forward(self, image):
        features = F.dropout(self.encoder(image), 0.5, True)
        return {name: head(features, image.shape[-2:]) for name, head in self.heads.items()}


class AlwaysOn(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


class Stubborn(Shown):
    def __init__(self):
        super().__init__()
        self.drop = AlwaysOn(0.5)

    def forward(self, image):
        features = self.drop(self.encoder(image))
        return {name: head(features, image.shape[-2:]) for name, head in self.heads.items()}


class Counting(Shown):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, image):
        self.calls += 1
        return {name: output + self.calls for name, output in super().forward(image).items()}


class TwoDevices(Shown):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(2, 2, device="meta")


class PlainTensor(Shown):
    def __init__(self):
        super().__init__()
        self.offset = torch.zeros(1, device="meta")


class Unsaved(Shown):
    def __init__(self):
        super().__init__()
        self.offset = torch.randn(1)

    def forward(self, image):
        return {name: output + self.offset for name, output in super().forward(image).items()}


class Kept(Shown):
    def __init__(self):
        super().__init__()
        self.register_buffer("map", torch.randn(2, 1, 32, 48))

    def forward(self, image):
        return {**super().forward(image), "depth": self.map}


class Learned(Kept):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image):
        return {**super().forward(image), "depth": self.map * self.scale}


built_before = itertools.count()


class Changing(Shown):
    def __init__(self):
        super().__init__(8 + next(built_before))


class Raises(Shown):
    def forward(self, image):
        return super().forward(image)["normals"]


class TrainsOtherwise(Shown):
    def forward(self, image):
        outputs = super().forward(image)
        return list(outputs.values()) if self.training else outputs


class Ready(Shown):
    pass


built = Shown()


def same():
    return built


def number():
    return 3


def fails():
    raise KeyError("width")


class NothingToShrink(nn.Module):
    """Its only channels are those of images and outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, CLASSES + 1, 3, padding=1)

    def forward(self, image):
        x = self.layer(image)
        return {"segmentation": x[:, :CLASSES], "depth": x[:, CLASSES:]}


class Encoder(nn.Module):
    """For model.encoder.name: two maps."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.deep = block(3, width), block(width, 2 * width)
        self.attention = nn.Conv2d(2 * width, 2 * width, 1)

    def forward(self, image):
        fine = self.stem(image)
        return [fine, self.attention(self.deep(fine))]


class OneMap(Encoder):
    def forward(self, image):
        return super().forward(image)[-1]


class Pyramid(nn.Module):
    """For tasks.*.head.kind: reads every map."""

    needs = "pyramid"

    def __init__(self, in_channels, channels, hidden=8):
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(one, hidden, 1) for one in in_channels)
        self.last = nn.Conv2d(hidden, channels, 1)

    def forward(self, features, size):
        maps = [F.interpolate(side(x), size=size) for side, x in zip(self.sides, features)]
        return self.last(torch.relu(sum(maps)))
'''

RECIPE = """
data: {name: scenes, size: [32, 48], batch_size: 4, options: {train: 8, val: 4}}
tasks:
  segmentation: {kind: segmentation}
  depth: {kind: depth}
model: {factory: "own_networks:Shown"}
train: {epochs: 2, threads: 1}
targets: []
"""
