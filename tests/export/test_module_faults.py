"""What a user may give `export_bundle` by mistake: each fault is named with its mend, and no bundle is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.config.target import AccuracyConfig, OnnxConfig, ParityConfig, Target
from compactmtl.errors import ArtifactError, CompactError, ConfigError, DataError
from compactmtl.export import export_bundle
from tests.support.own_module import FLOAT, INT8, SIZE, images, loader, scene


def refused(tmp_path: Path, model: nn.Module, example: Any = None, **options: Any) -> str:
    """The message and mend of the error that exporting raises."""
    options.setdefault("target", FLOAT)
    with pytest.raises(CompactError) as caught:
        export_bundle(model, images(2) if example is None else example, tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()
    assert caught.value.hint
    return str(caught.value)


class Noisy(nn.Module):
    """Dropout that is on in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(image), 0.5, training=True)


class Listing(nn.Module):
    """Gives something that is no tensor."""

    def forward(self, image: Tensor) -> dict[str, Any]:
        return {"boxes": [image.mean()]}


def test_training_mode(tmp_path: Path) -> None:
    model = scene().train()
    assert "call model.eval()" in refused(tmp_path, model)
    model.eval()
    model.stem[1].train()
    assert "stem.1 in it is in training mode" in refused(tmp_path, model)


def test_outputs_that_differ_from_run_to_run(tmp_path: Path) -> None:
    assert "output 'output' differs from run to run" in refused(tmp_path, Noisy().eval())


def test_an_example_on_another_device(tmp_path: Path) -> None:
    message = refused(tmp_path, scene(), images(2).to("meta"))
    assert "the model is on cpu, its example input 'image' on meta" in message


def test_a_model_on_two_devices(tmp_path: Path) -> None:
    model = scene()
    model.depth.to("meta")
    assert "several devices: stem.0.weight on cpu, depth.weight on meta" in refused(tmp_path, model)


def test_a_model_that_fails_or_gives_no_tensor(tmp_path: Path) -> None:
    assert "fails on the example inputs: RuntimeError" in refused(tmp_path, scene(), torch.zeros(2, 4, 8, 8))
    assert "output 'boxes' of the model is a list" in refused(tmp_path, Listing().eval())


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    model = scene()
    with torch.no_grad():
        model.depth.weight.fill_(math.nan)
    assert "output 'depth' holds NaN" in refused(tmp_path, model)


def test_int8_without_calibration(tmp_path: Path) -> None:
    assert "none was given" in refused(tmp_path, scene(), target=INT8)


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "calibration gives no batch"),
        ([torch.zeros(2, 3, 8, 8)], "input 'image' has shape (2, 3, 8, 8), the example's has (2, 3, 16, 24)"),
        ([torch.zeros(2, 3, *SIZE, dtype=torch.uint8)], "input 'image' is torch.uint8"),
        ([{"pixels": torch.zeros(2, 3, *SIZE)}], "has pixels, and not image"),
        ([{"image": "a.png"}], "holds 0 tensors for 1 inputs: image"),
        ([3], "calibration batch 0 is a int"),
        ([images(2), images(2)[:, :1]], "calibration batch 1"),
    ],
)
def test_calibration_that_does_not_fit(tmp_path: Path, batches: list[Any], says: str) -> None:
    assert says in refused(tmp_path, scene(), target=INT8, calibration=batches)


def scored(tmp_path: Path, *answers: Any, baseline: nn.Module | None = None) -> str:
    """What is said where evaluate gives `answers`, one after the other."""
    given = iter(answers)

    def evaluate(predict: Any) -> Any:
        predict(images(1))
        return next(given)

    return refused(tmp_path, scene(), evaluate=evaluate, baseline=baseline)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"miou": math.nan}, "evaluate gives nan for 'miou' of the torch model"),
        ({}, "evaluate gives nothing"),
        (0.7, "evaluate gives a float"),
        ({"miou": "high"}, "'miou': 'high'"),
        ({"depth.rmse": 0.4}, "say which way it goes"),
        ({"val_loss": 0.4}, "say which way it goes"),
    ],
)
def test_metrics_of_no_use(tmp_path: Path, answer: Any, says: str) -> None:
    assert says in scored(tmp_path, answer)


@pytest.mark.slow  # exports
def test_other_metrics_for_another_model(tmp_path: Path) -> None:
    assert "evaluate gives b for the exported file, and a for the torch model" in scored(
        tmp_path, {"a": 1.0}, {"b": 1.0}
    )
    assert "more of 'a' is worse" in scored(tmp_path, {"a": 1.0}, {"a": (1.0, False)})
    message = scored(tmp_path, {"a": 1.0}, {"a": math.nan}, baseline=scene())
    assert "evaluate gives nan for 'a' of the baseline" in message


def test_an_evaluation_that_raises_or_calls_nothing(tmp_path: Path) -> None:
    def fails(predict: Any) -> Any:
        raise ZeroDivisionError("no labels")

    message = refused(tmp_path, scene(), evaluate=fails)
    assert "evaluate fails on the torch model: ZeroDivisionError: no labels" in message
    assert "did not call predict" in refused(tmp_path, scene(), evaluate=lambda predict: {"a": 1.0})


def test_a_baseline_of_other_outputs(tmp_path: Path) -> None:
    assert "the baseline gives" in refused(tmp_path, scene(), baseline=nn.Conv2d(3, 1, 1).eval())


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (FLOAT.model_copy(update={"accuracy": AccuracyConfig(compact_drop=0.1)}), "accuracy.compact_drop"),
        (FLOAT.model_copy(update={"parity": ParityConfig(tasks={"dept": 0.1})}), "no output"),
        (FLOAT.model_copy(update={"onnx": OnnxConfig(preprocess=True)}), "images="),
        (
            FLOAT.model_copy(update={"onnx": OnnxConfig(postprocess={"scores": "argmax"})}),
            "outputs={'scores'",
        ),
        (Target(backend="torch"), "runs no exported file"),
    ],
)
def test_targets_that_ask_for_what_is_not_there(tmp_path: Path, target: Target, says: str) -> None:
    assert says in refused(tmp_path, scene(), target=target)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"dept": {"kind": "depth"}}, "outputs names 'dept'"),
        ({"depth": {"king": "depth"}}, "outputs.depth.king"),
        (
            {"depth": {"kind": "normals"}},
            "reads (batch, 3, height, width), and the model gives (2, 1, 16, 24)",
        ),
        ({"scores": {"kind": "classification", "classes": ["a", "b"]}}, "reads (batch, 2)"),
        ({"scores": {"classes": ["a", "b"]}}, "belong to a kind"),
        ({"depth": {"kind": "depth", "meaning": "far"}}, "leave meaning or kind out"),
    ],
)
def test_words_that_do_not_fit_the_outputs(tmp_path: Path, words: Any, says: str) -> None:
    assert says in refused(tmp_path, scene(), outputs=words)


def test_pictures_for_a_model_that_takes_none(tmp_path: Path) -> None:
    assert "leave images out" in refused(tmp_path, nn.Linear(4, 2).eval(), torch.randn(2, 4), images={})
    assert "size (8, 8), the example's pictures have (16, 24)" in refused(
        tmp_path, scene(), images={"size": (8, 8)}
    )


@pytest.mark.slow  # exports
def test_a_loader_is_read_no_further_than_needed(tmp_path: Path) -> None:
    read = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield next(loader())

    quiet = INT8.model_copy(update={"int8": INT8.int8.model_copy(update={"samples": 6})})
    bundle = export_bundle(scene(), images(2), tmp_path / "b", target=quiet, calibration=endless())
    assert len(read) == 2  # of 4 samples each
    assert bundle.info.precision is not None and bundle.info.precision.samples == 6


@pytest.mark.parametrize("error", [ConfigError, ArtifactError, DataError])
def test_these_are_faults_of_the_user(error: type[CompactError]) -> None:
    assert error.exit_code == 2


def test_pictures_need_a_value_a_channel_and_a_known_way_to_their_size(tmp_path: Path) -> None:
    said = refused(tmp_path, scene(), images={"mean": [0.5], "std": [0.5]})
    assert "mean of 1 values" in said and "3 channels" in said
    assert "resize 'fill'" in refused(tmp_path, scene(), images={"resize": "fill"})


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"std": [0, 0, 0]}, "std 0, 0, 0: pictures are divided by it"),
        ({"std": [0.2, -0.2, 0.2]}, "each value has to be above 0"),
        ({"std": [0.2, math.nan, 0.2]}, "std 0.2, nan, 0.2: a value is not finite"),
        ({"mean": [0, math.inf, 0]}, "mean 0, inf, 0: a value is not finite"),
        ({"mean": []}, "mean has no value"),
        ({"mean": [0.5]}, "mean has 1 values and std 3"),
        ({"range": (5, 5)}, "range (5, 5)"),
    ],
)
def test_values_by_which_no_picture_is_normalized(tmp_path: Path, said: dict[str, Any], fault: str) -> None:
    assert fault in refused(tmp_path, scene(), images=said)
