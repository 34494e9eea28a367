"""Networks of layers in a row, and what holds their compact form to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.surgery import apply_plan, compact
from tests.support.masking import assert_close

IMAGE = torch.randn(2, 6, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(3, 6, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ready(model: nn.Module) -> Any:
    """In eval mode and float64, with norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                assert value is not None
                nn.init.uniform_(value, 0.5, 1.5)
    return model.double().eval()


def checked(model: nn.Module, image: Tensor = IMAGE, other: Tensor = OTHER) -> Any:
    """Compact a network, and hold the result and what its plan rebuilds to it."""
    result = compact(model, (image,))
    with torch.no_grad():
        for x in (image, other):
            assert_close(model(x), result.model(x))
            assert_close(model(x), apply_plan(model, result.plan).eval()(x))
    for value in result.model.parameters():
        assert value.stride() == torch.empty(value.shape).stride()  # others ask for another memory format
    assert result.report.macs_after == sum(layer.macs_after for layer in result.report.layers)
    assert set(dict(result.model.named_modules())) == set(dict(model.named_modules()))
    return result


def conv(inputs: int, outputs: int, kernel: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **settings)


def identity(kernel: int = 1, width: int = 6) -> nn.Conv2d:
    layer = conv(width, width, kernel, padding=kernel // 2, bias=kernel == 1)
    with torch.no_grad():
        nn.init.dirac_(layer.weight)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
