"""A live module behind the runner protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.backends import get_backend
from compactmtl.backends.torch.runner import TorchRunner, named_outputs
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError
from tests.support.onnx_files import WIDTH, TwoHeads


def test_runs_in_eval_mode_with_the_modules_own_names() -> None:
    module = TwoHeads().train()
    x = np.ones((2, WIDTH), np.float32)
    with TorchRunner(module, ["image"]) as runner:
        first, second = runner.run({"image": x}), runner.run({"image": x})
    assert list(first) == ["zeta", "alpha"] == list(runner.output_names)
    np.testing.assert_array_equal(first["zeta"], second["zeta"])  # dropout would make them differ


def test_threads_hold_while_it_runs_and_are_put_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return x

    with TorchRunner(Spy(), ["x"], threads=before + 1) as runner:
        runner.run({"x": np.zeros(1, np.float32)})
        assert runner.describe().threads == before + 1
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_output_kinds_get_names() -> None:
    a, b = torch.zeros(1), torch.ones(2)
    assert list(named_outputs(a)) == ["output"]
    assert list(named_outputs((a, b))) == ["output_0", "output_1"]
    assert list(named_outputs({"z": a, "a": b})) == ["z", "a"]
    assert list(named_outputs({"z": a, "a": b}, ["first", "second"])) == ["first", "second"]


@pytest.mark.parametrize(
    ("outputs", "names", "message"),
    [
        ({"a": [torch.zeros(1)]}, None, "output 'a' of the model is a list"),
        (3.0, None, "not a tensor"),
        ({}, None, "no output"),
        (torch.zeros(1), ["a", "b"], "1 outputs"),
    ],
)
def test_outputs_that_are_no_tensors_are_named(
    outputs: object, names: list[str] | None, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        named_outputs(outputs, names)


def test_torch_opens_no_file() -> None:
    with pytest.raises(ArtifactError, match="live module"):
        get_backend("torch").open(Path("model.pt"), Target(backend="torch"))
