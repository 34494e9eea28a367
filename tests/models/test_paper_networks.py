"""The papers' networks go the whole way: factorized, made sparse, compacted, exported, equal in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.config.recipe import Recipe
from compactmtl.export import export_onnx
from compactmtl.models import MultiTaskModel, build_model
from compactmtl.overparam import contract, overparameterize
from compactmtl.sparsity import channel_groups
from compactmtl.surgery import compact
from compactmtl.tasks import TargetSpec, build_tasks
from compactmtl.verify import check_parity

SPECS = {
    "seg": TargetSpec("mask", classes=("a", "b", "c"), ignore_index=255),
    "depth": TargetSpec("depth", unit="m", mean=3.0, std=1.5),
}
NARROW = [16, 16, 32, 32]

# name: encoder, head, image size; odd sizes where the network takes them
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "segnet": ({"name": "segnet", "options": {"width": 8}}, {"kind": "fcn"}, (36, 50)),
    "dilated-resnet50-deeplabv3": (
        {"name": "resnet50", "output_stride": 8, "options": {"channels": NARROW}},
        {"kind": "deeplabv3"},
        (64, 96),
    ),
    "segnet-mtan": ({"name": "segnet", "options": {"width": 4}}, {"kind": "mtan"}, (36, 50)),
    "resnet26-mtan-deeplabv3": (
        {"name": "resnet26", "output_stride": 8, "options": {"channels": NARROW}},
        {"kind": "mtan", "predictor": "deeplabv3"},
        (64, 96),
    ),
    "swin-tiny": (
        {
            "name": "swin_tiny_patch4_window7_224",
            "options": {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]},
        },
        {"kind": "fcn"},
        (56, 84),
    ),
    "mobilenetv3-deeplabv3plus": (
        {"name": "mobilenetv3_small_050"},
        {"kind": "deeplabv3plus", "depth": 2},
        (64, 96),
    ),
}


def network(encoder: dict[str, Any], head: dict[str, Any], size: tuple[int, int]) -> MultiTaskModel:
    """A network with batch norms that look trained: random statistics, scales and shifts."""
    recipe = Recipe.model_validate(
        {
            "data": {"name": "any", "size": size},
            "tasks": {
                "seg": {"kind": "segmentation", "head": {"width": 8, **head}},
                "depth": {"kind": "depth", "head": {"width": 8, **head}},
            },
            "model": {"encoder": encoder},
        }
    )
    model = build_model(recipe, build_tasks(recipe.tasks, SPECS)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def make_sparse(model: nn.Module, image: torch.Tensor) -> float:
    """Set half of the coupled groups of the whole model to zero; the share of MACs that this should free."""
    groups = channel_groups(model, image, scope="model")
    keep = []
    with torch.no_grad():
        for family in groups.bound:
            dead = torch.rand(family.size) < 0.5
            for piece in family.tensors:
                piece.zero_(piece.parameter, dead)
            keep.append((~dead).numpy())
    assert groups.macs is not None
    return 1 - groups.macs(keep) / groups.macs([flags | True for flags in keep])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_papers_networks_go_the_whole_way(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, head, size = NETWORKS[name]
    model = network(encoder, head, size)
    image = torch.randn(2, 3, *size)
    factorized = overparameterize(model, scope="model").eval()
    with torch.inference_mode():
        expected, found = model(image), factorized(image)
    for task, value in expected.items():
        # float32 through tens of factorized layers
        assert float((found[task] - value).abs().max()) <= 1e-3 * float(value.max() - value.min())
    share = make_sparse(factorized, image)
    assert share > 0.2
    result = compact(factorized, (image,))
    assert result.report.proof.passed
    removed = 1 - result.report.macs_after / result.report.macs_before
    # All that the groups count, less what layers of dead channels keep.
    assert not any("rolled back" in reason for reason in result.report.not_pruned.values())
    assert share - 0.05 <= removed <= share + 0.02
    path = export_onnx(result.model, image, tmp_path / "model.onnx")
    parity = check_parity(contract(factorized), path, (image,))
    assert parity.passed, parity
