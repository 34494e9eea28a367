"""--device says where a torch model runs; one that is not there, or means nothing, ends the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.backends.torch.device import find_device
from compactmtl.cli.main import main
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError
from compactmtl.export import Predictor
from compactmtl.runs import Run
from tests.support.bundles import conv_bundle
from tests.support.real_runs import compact_half, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compact_half(write_run(tmp_path_factory.mktemp("runs") / "run"))


COMMANDS = {
    "compact": ("compact", "RUN", "--evaluate"),
    "export": ("export", "RUN", "--target", "onnxruntime-cpu"),
    "report": ("report", "RUN"),
    "probe": ("probe", "RUN"),
    "predict": ("predict", "RUN", "photo.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there_exits_3_before_any_work(
    command: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run.path) if word == "RUN" else word for word in COMMANDS[command]]
    assert main([*words, "--device", "cuda:99"]) == 3
    shown = capsys.readouterr().err
    assert "--device: cuda:99 was asked for and this machine has" in shown
    assert "--device cpu" in shown
    assert main([*words, "--device", "gpu"]) == 2
    assert "'gpu' is not a torch device" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_run_on_the_device_that_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", str(run.path), "--evaluate", "--device", "cpu"]) == 0
    assert "val, trained and compact:" in capsys.readouterr().out


def test_a_bundle_runs_where_its_target_says(tmp_path: Path) -> None:
    bundle = conv_bundle(tmp_path / "bundle", Target(backend="onnxruntime")).path
    with pytest.raises(ConfigError, match="runs where its target says, not on cuda"):
        Predictor.open(bundle, device="cuda")


def test_a_device_of_a_recipe_is_named_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"train\.device: 'x' is not a torch device"):
        find_device("x")
