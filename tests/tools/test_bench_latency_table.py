"""The bench of latency tables: a network by name or recipe, and other tables beside its own on the same cuts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.backends import load_target
from compactmtl.errors import ConfigError
from compactmtl.latency import Store, latency_table, measure
from compactmtl.latency.measure import conditions_of
from tests.support import made_up_runtime
from tools import bench_latency_table as bench

TARGET = "onnxruntime-cpu"
QUICK = ["data.options.train=4", "data.options.val=4", "data.size=[48,64]"]


def small(
    name: str, size: int, overrides: list[str], batch: int
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 4, 1),
    )
    return layers.eval(), (torch.zeros(batch, 3, size, size),)


@pytest.mark.slow
def test_a_table_of_another_version_is_held_against_the_same_cuts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The made-up runtime is foreseen exactly; a table that says twice the time is 100 % off."""
    made_up_runtime.install(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(bench, "observe", measure.__dict__["observe"])
    monkeypatch.setattr(bench, "network", small)
    target = load_target(TARGET)
    table = latency_table(
        *small("", 8, [], 1), target, TARGET, store=Store(conditions_of(target, 1), tmp_path / "store")
    )
    table.scaled(2.0).save(tmp_path / "twice.json")
    own, other = bench.rows("made up", 8, [], TARGET, 4, beside=[tmp_path / "twice.json"])
    assert "| made up, 8×8 | `onnxruntime-cpu` |" in own and "| 0.0% / 0.0% | 0.0% / 0.0% |" in own
    assert "`onnxruntime-cpu`, twice |" in other and "| 100.0% / 100.0% | 0.0% / 0.0% |" in other
    wider = table.model_copy(
        update={
            "layers": {
                name: one.model_copy(update={"full": (64, one.inputs)}) for name, one in table.layers.items()
            }
        }
    )
    wider.save(tmp_path / "wider.json")
    with pytest.raises(ConfigError, match="up to"):
        list(bench.rows("made up", 8, [], TARGET, 4, beside=[tmp_path / "wider.json"]))


@pytest.mark.slow
def test_a_network_is_one_of_timm_or_that_of_a_recipe() -> None:
    model, (image,) = bench.network("resnet18", 32, [], 2)
    assert image.shape == (2, 3, 32, 32) and model(image).shape == (2, 10)
    model, (image,) = bench.network("scenes/dense", 32, QUICK, 1)
    assert image.shape == (1, 3, 48, 64)
    assert not model.training and set(model(image)) == {"segmentation", "depth", "normals"}
    with pytest.raises(ConfigError, match="resnet1"):
        bench.network("resnet1", 32, [], 1)


def test_tables_beside_are_of_one_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "resnet18", "--targets", "a", "b", "--beside", "x.json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        bench.main()
    assert "--beside is of one target" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["bench", "resnet18", "data.root=x"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "values override a recipe" in capsys.readouterr().err
