"""A live module as a target: its leaves are timed, and it is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.backends import get_backend, load_target
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError
from compactmtl.latency.observe import attribute

IMAGE = np.zeros((1, 3, 8, 8), dtype=np.float32)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        result: torch.Tensor = (x + self.body(x)).mean((2, 3))
        return result


def test_every_leaf_is_a_step_and_so_is_what_runs_between() -> None:
    model = Net().train()
    target = load_target("torch-cpu")
    with get_backend("torch").open_module(model, ["image"], target) as runner:
        (output,) = runner.run({"image": IMAGE}).values()
        times = runner.layer_times({"image": IMAGE}, 3)
    assert output.shape == (1, 8) and model.training
    names = [step.name for step in times]
    assert [name for name in names if " " not in name] == ["stem", "body.0", "body.1"]
    assert names[-1] == "after body.1"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    layers, rest = attribute(times, ["stem", "body.0"], 1e3, {})
    assert layers["stem"] > 0 and layers["body.0"] > 0 and rest < 1e3


def test_torch_runs_float32_alone() -> None:
    with pytest.raises(ConfigError, match="backend torch takes fp32"):
        get_backend("torch").open_module(Net(), ["image"], Target(backend="torch", precision="int8"))
