"""Small random networks out of every operator family that surgery follows, with random channels masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Draw = Callable[[int], int]  # draw(n) -> an integer in [0, n)


class Plain(nn.Module):
    def __init__(self, width: int, out: int, bias: bool, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 3, padding=padding, bias=bias)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(x + self.norm(self.two(F.hardswish(self.one(x)))))


class Inverted(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(width, inner, 1, bias=False), nn.Conv2d(inner, width, 1)
        self.norm = nn.BatchNorm2d(inner)
        self.depth = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.down, self.up = nn.Linear(inner, 4), nn.Linear(4, inner)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.depth(F.relu(self.norm(self.expand(x)))))
        gate = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))
        out: Tensor = x + self.project(y * gate[:, :, None, None])
        return out


class Grouped(nn.Module):
    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x))


class Halves(nn.Module):
    """Split in two, transform one half, put them together again (cross-stage partial)."""

    def __init__(self, width: int, chunk: bool) -> None:
        super().__init__()
        self.part = width // 2
        self.chunk = chunk
        self.conv = nn.Conv2d(self.part, self.part, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1) if self.chunk else torch.split(x, self.part, 1)
        return torch.cat([a, torch.tanh(self.conv(b))], 1)


class Shuffle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return F.elu(self.conv(x))


class Upscale(nn.Module):
    def __init__(self, width: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(width, width * (4 if kind == 0 else 1), 1)
        self.transposed = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.avg_pool2d(x, 2))
        if self.kind == 0:
            return F.relu(F.pixel_shuffle(y, 2))
        if self.kind == 1:
            return F.relu(self.transposed(y))
        return F.relu(F.interpolate(y, scale_factor=2, mode="bilinear"))


class Pools(nn.Module):
    """Padded pools: the average is no longer uniform at the border, the maximum is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.max_pool2d(y, 3, 1, 1) + F.avg_pool2d(y, 3, 1, 1) + F.pad(y, (1, 0, 0, 1))[..., 1:, :-1]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = heads, 4, fused
        self.qkv, self.proj = nn.Linear(width, 3 * 4 * heads), nn.Linear(4 * heads, width)
        self.scale = 0.5

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(b, h * w, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).flatten(2))
        out: Tensor = x + y.transpose(1, 2).reshape(b, -1, h, w)
        return out


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)
        self.gamma = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x) * self.gamma
        return out


class Response(nn.Module):
    """Each channel's norm over its positions, over the mean of all channels' (global response normalization)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(1, 2), keepdim=True)
        out: Tensor = x + self.bias + self.weight * x * (size / (size.mean(-1, keepdim=True) + 1e-6))
        return out


class Normed(nn.Module):
    """Norms over the channel, in front of two layers and between them."""

    def __init__(self, width: int, inner: int, kind: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = (nn.LayerNorm, nn.RMSNorm, Response)[kind](inner)
        self.one, self.two = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.gelu(self.inner(self.one(self.norm(x.permute(0, 2, 3, 1))))))
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out

    def mask(self, draw: Draw) -> None:
        """Zero some channels of the norm in between, with or without a bias, and most of them in front of it."""
        weight, bias = self.inner.weight, getattr(self.inner, "bias", None)
        rows = torch.rand(len(weight)) < 0.5
        for value in (self.one.weight, self.one.bias, weight, bias if draw(2) else None):
            if value is not None:
                value[rows] = 0
        rows[draw(len(rows))] = True  # and one that is zero, or scaled by zero, in one of them alone
        for value in (self.one.weight, self.one.bias) if draw(2) else (weight,):
            value[rows] = 0


class Selective(nn.Module):
    """Two paths, each channel weighed between them (selective kernels): stacked, compared and summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        both = [F.relu(norm(path(x))) for path, norm in zip(self.paths, self.norms, strict=True)]
        stacked = torch.stack(both, 1)
        scores = self.up(F.relu(self.down(stacked.sum(1).mean((2, 3)))))
        weights = scores.view(len(x), 2, -1).softmax(1)
        out: Tensor = (stacked * weights[..., None, None]).sum(1)
        return out


class Standardized(nn.Conv2d):
    """Each filter minus its mean over its deviation."""

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.relu(F.conv2d(x, (self.weight - mean) / (deviation + 1e-3), self.bias, padding=1))


class Uneven(nn.Module):
    """Attention whose queries, keys and values are split off one layer's heads in uneven parts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = heads, 3, 5
        self.qkv, self.proj = nn.Conv2d(width, 11 * heads, 1), nn.Conv2d(5 * heads, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        parts = self.qkv(x).view(b, self.num_heads, -1, h * w)
        q, k, v = parts.split([self.key_dim, self.key_dim, self.value_dim], dim=2)
        attention = (q.transpose(-2, -1) @ k * 0.5).softmax(-1)
        out: Tensor = x + self.proj((v @ attention.transpose(-2, -1)).view(b, -1, h, w))
        return out


class Groups(nn.Module):
    """A norm over groups of channels, and a grouped convolution behind it."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 1), nn.GroupNorm(4, width)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.grouped(F.silu(self.norm(self.conv(x)))))

    def mask(self, draw: Draw) -> None:
        """Zero one whole group, or a part of it, in front of the norm and maybe in it."""
        size = len(self.norm.weight) // 4
        first = draw(4) * size
        rows = list(range(first, first + (size if draw(3) else 1)))
        for value in (
            self.conv.weight,
            self.conv.bias,
            *((self.norm.weight, self.norm.bias) if draw(2) else ()),
        ):
            assert value is not None
            value[rows] = 0


class Recurrence(nn.Module):
    """A recurrent layer along the rows of the map."""

    def __init__(self, width: int, kind: int, layers: int, both: bool) -> None:
        super().__init__()
        self.layer: Any = (nn.LSTM, nn.GRU, nn.RNN)[kind](
            width, 5, layers, bidirectional=both, batch_first=True
        )
        self.gates = (4, 3, 1)[kind]
        self.out = nn.Linear(10 if both else 5, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.mean(3).transpose(1, 2))[0]
        out: Tensor = x + self.out(y).transpose(1, 2)[..., None]
        return out

    def mask(self, draw: Draw) -> None:
        """Zero some units of all layers, or of one of them, and columns."""
        units, alone = [draw(5), draw(5)], draw(3) == 0
        for name, value in self.layer.named_parameters():
            if not alone or name.endswith("l0"):
                value.view(self.gates, 5, -1)[:, units] = 0
        if draw(2):
            self.layer.weight_ih_l0[:, draw(self.layer.input_size)] = 0


class Transposed(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2, groups=groups)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.up(F.avg_pool2d(x, 2))))


class Written(nn.Module):
    """Arithmetic in other spellings: gated linear units, products with parameters, fixed filters, made tensors."""

    def __init__(self, width: int, kind: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.conv = nn.Conv2d(width, 2 * width if kind in (0, 3) else width, 1)
        self.matrix = nn.Parameter(torch.randn(width, width) / width)
        self.filter: Tensor
        self.register_buffer("filter", torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == 0:
            return F.glu(y, 1)
        if self.kind == 1:
            return torch.einsum("bchw,cd->bdhw", y, self.matrix)
        if self.kind == 2:
            return F.conv2d(y, self.filter.repeat(y.shape[1], 1, 1, 1), padding=1, groups=y.shape[1])
        if self.kind == 3:
            return torch.maximum(*y.split(self.width, 1))
        if self.kind == 4:
            mask = x.mean((1,), keepdim=True) > 0
            return torch.where(mask, y, y.new_zeros(y.shape)).masked_fill(~mask, 0.0) + torch.zeros_like(y)
        padded = F.pad(y, (0, 0, 0, 0, 2, 1))[:, 2:-1]
        return torch.cat([padded, y.new_zeros(y.shape)], 1).view(len(y), 2, -1, *y.shape[2:]).sum(1)


class Network(nn.Module):
    """Blocks one after another, a map and a vector as outputs."""

    def __init__(self, draw: Draw, depth: int) -> None:
        super().__init__()
        width = 8
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        blocks: list[nn.Module] = []
        for _ in range(depth):
            kind = draw(18)
            if kind == 0:
                out = (4, 8, 12)[draw(3)]
                blocks.append(Plain(width, out, bool(draw(2)), draw(2)))
                width = out
            else:
                blocks.append(_block(kind, width, draw))
        self.blocks = nn.ModuleList(blocks)
        self.map = nn.Conv2d(width, 2, 3, padding=1)
        self.vector = nn.Linear(width * 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return {"map": self.map(x), "vector": self.vector(F.adaptive_avg_pool2d(x, 2).flatten(1))}


def _block(kind: int, width: int, draw: Draw) -> nn.Module:
    makers: dict[int, Callable[[], nn.Module]] = {
        1: lambda: Residual(width, 6),
        2: lambda: Inverted(width, 10),
        3: lambda: Grouped(width, width, (2, 4)[draw(2)]),
        4: lambda: Halves(width, bool(draw(2))),
        5: lambda: Shuffle(width, (2, 4)[draw(2)]),
        6: lambda: Upscale(width, draw(3)),
        7: lambda: Pools(width),
        8: lambda: Attention(width, (1, 2)[draw(2)], bool(draw(2))),
        9: lambda: LayerScale(width),
        10: lambda: Normed(width, 12, draw(3)),
        11: lambda: Selective(width),
        12: lambda: Standardized(width, width, 3),
        13: lambda: Uneven(width, (1, 2)[draw(2)]),
        14: lambda: Groups(width, (2, 4)[draw(2)]),
        15: lambda: Recurrence(width, draw(3), 1 + draw(2), bool(draw(2))),
        16: lambda: Transposed(width, (1, 2, width)[draw(3)]),
        17: lambda: Written(width, draw(6)),
    }
    return makers[kind]()


def mask(model: nn.Module, draw: Draw) -> None:
    """Zero random filters, biases, norm affines, input slices and scales, each layer in its own way."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
            weight = getattr(module, "weight", None)
            if isinstance(module, (Normed, Groups, Recurrence)):
                module.mask(draw)
            if not isinstance(weight, nn.Parameter) or isinstance(
                module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, Response)
            ):
                continue
            kind = draw(4)
            rows = torch.rand(weight.shape[0]) < 0.4
            if kind == 0:
                continue
            if kind == 3 and weight.ndim > 1:
                weight[:, torch.rand(weight.shape[1]) < 0.4] = 0
                continue
            weight[rows] = 0
            if kind == 1 and getattr(module, "bias", None) is not None:
                module.bias[rows] = 0  # type: ignore[operator]
            if isinstance(module, Attention) and draw(3) == 0:
                heads = module.qkv.weight.view(3, module.num_heads, 4, -1)
                heads[2, draw(module.num_heads)] = 0  # the values of a whole head
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter[torch.rand(len(parameter)) < 0.3] = 0
