"""Explanations of networks that were made odd on purpose, by the profiles of real runtimes.

Only what holds on any processor: which layers are in which part, and that all parts are the gap. How long a kernel takes is
the processor's own.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.backends import get_backend, load_target
from compactmtl.export import export_onnx
from compactmtl.verify.explain import explain
from compactmtl.verify.profile import Options, Subject, profile
from compactmtl.verify.result import Explanation

QUICK = Options(batches=(1,), warmup=2, repeats=10, layer_repeats=5, memory=False, energy=False)


def network(*widths: int, kernel: int = 3) -> nn.Sequential:
    """Convolutions of these widths, each with an activation, and a linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5)).eval()


def explained(folder: Path, dense: nn.Module, small: nn.Module, target_name: str) -> Explanation:
    target = load_target(target_name)
    inputs = (torch.zeros(1, 3, 16, 16),)
    with ExitStack() as stack:
        subjects = {}
        for name, model in {"dense": dense, "small": small}.items():
            path = export_onnx(model, inputs, folder / f"{name}.onnx", input_names=["image"])
            runner = stack.enter_context(get_backend(target.backend).open(path, target))
            subjects[name] = Subject(path, target, runner)
        found = profile(subjects, QUICK)
    return explain(found.latency, found.subjects, "small", "dense")


def layers_of(found: Explanation, key: str) -> set[str]:
    return {layer for part in found.parts if part.key == key for layer in part.layers}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino"])
def test_odd_networks_are_explained_to_the_last_layer(target: str, tmp_path: Path) -> None:
    """Widths of 33; removed from the last layers alone; 1×1 layers that are little but a call."""
    cases = {
        "33": (network(64, 64, 64), network(33, 33, 33), set[str]()),
        "late": (network(32, 32, 64, 64), network(32, 32, 64, 9), {"0", "2", "4"}),
        "tiny": (network(8, 8, 8, 8, kernel=1), network(3, 3, 3, 3, kernel=1), set[str]()),
    }
    for name, (dense, small, untouched) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        found = explained(folder, dense, small, target)
        parts = sum(part.milliseconds for part in found.parts) + found.remainder
        assert parts == pytest.approx(found.gap, abs=1e-6), name
        assert layers_of(found, "untouched") == untouched, name
        convolutions = {
            key for key, layer in dense.named_children() if isinstance(layer, nn.Conv2d | nn.Linear)
        }
        assert layers_of(found, "untouched") | layers_of(found, "uneven") == convolutions, name
        assert not layers_of(found, "added"), name
        assert {part.key for part in found.parts} >= {"call", "uneven", "kernels"}, name
