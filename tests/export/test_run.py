"""From a run to a verified bundle, its tampering, and predictions from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compactmtl.artifacts.files import sha256_file
from compactmtl.config.target import AccuracyConfig, LatencyConfig, OnnxConfig, Target
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError
from compactmtl.export import Bundle, Predictor, export_run
from compactmtl.export.bundle import BundleHashError, BundleVersionError
from compactmtl.export.onnx import read_metadata
from compactmtl.report.export_figures import layer_of
from compactmtl.runs.checkpoint import load_summary, save_best
from compactmtl.train import Run
from compactmtl.verify import Verification

FAST = LatencyConfig(batch=2, warmup=1, repeats=3)
TARGET = Target(backend="onnxruntime", latency=FAST, accuracy=AccuracyConfig(samples=3))


@pytest.fixture(scope="session")
def verification(compacted: Run) -> Verification:
    """Exported at a fixed batch of 2 and verified on 3 images: the last batch is short."""
    return export_run(compacted, "small", TARGET)


@pytest.fixture(scope="session")
def bundle(compacted: Run, verification: Verification) -> Bundle:
    return Bundle.open(compacted.path / "export" / "small")


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


@pytest.mark.slow
def test_a_sound_export_passes_every_gate(verification: Verification) -> None:
    assert verification.passed
    assert {gate.subject for gate in verification.gates} > {"segmentation.miou", "depth.abs_err"}
    assert [output.name for output in verification.parity.outputs] == ["segmentation", "depth"]
    assert verification.accuracy.samples == 3
    assert verification.accuracy.baseline is None


def test_the_compact_model_is_timed_against_the_dense_one(verification: Verification, compacted: Run) -> None:
    assert verification.latency.reference == "dense"
    assert set(verification.latency.stats) == {"dense", "compact"}
    assert {stats.batch for stats in verification.latency.stats.values()} == {2}
    models = compacted.load_compact(), compacted.load_plain()
    compact, dense = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
    assert compact < dense


def test_layers_and_error_maps_are_kept(verification: Verification, bundle: Bundle) -> None:
    layers = {name: verification.measured[name].layers for name in ("dense", "compact")}
    memory = {name: verification.measured[name].memory for name in ("dense", "compact")}
    assert all(one is not None and one.peak_mib >= one.opened_mib > 0 for one in memory.values())
    names = {name: {layer_of(one) for one in found or ()} for name, found in layers.items()}
    assert len(names["dense"] & names["compact"]) > 0.8 * len(
        names["dense"]
    )  # so that a report can pair them
    assert set(verification.error_maps) == {"segmentation", "depth"}
    parity = {output.name: output for output in verification.parity.outputs}
    for name, one in verification.error_maps.items():
        assert (bundle.path / one.file).is_file()
        # the same images by the same rule as the gate, which held
        assert one.relative <= parity[name].max_relative <= parity[name].tolerance


def test_bundle_says_what_it_is(bundle: Bundle, compacted: Run) -> None:
    info = bundle.info
    assert (info.run, info.compact, info.target_name) == (compacted.name, True, "small")
    assert info.inputs[0].shape == (2, 3, 16, 24)
    assert [output.name for output in info.outputs] == ["segmentation", "depth"]
    assert info.tasks["depth"].spec.unit == "m"
    assert info.preprocessing.size == (16, 24)
    assert info.plan_sha256 == sha256_file(compacted.path / "compact" / "plan.json")
    assert info.weights_sha256 == sha256_file(compacted.path / "compact" / "weights.safetensors")
    kept = read_metadata(bundle.model_path)
    assert kept["compactmtl.recipe_sha256"] == info.recipe_sha256
    assert kept["compactmtl.plan_sha256"] == info.plan_sha256


def test_bundle_reads_back_equal_and_is_trusted(bundle: Bundle, verification: Verification) -> None:
    assert bundle.verification == verification
    assert bundle.doubt == ""
    assert set(bundle.tasks) == {"segmentation", "depth"}


@pytest.mark.slow  # exports two models
def test_run_without_surgery_against_a_baseline(trained: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(trained.path, tmp_path / "run"))
    target = TARGET.model_copy(
        update={
            "onnx": OnnxConfig(dynamic_batch=True),
            "accuracy": AccuracyConfig(samples=2, compact_drop=0.0),
            "latency": FAST.model_copy(update={"batch": 1}),
        }
    )
    found = export_run(run, "free", target, trained)
    assert found.accuracy.baseline == found.accuracy.torch  # the baseline is the run itself
    assert set(found.latency.stats) == {"dense", "model"}
    # 8 images one by one, noise, and batches of 1 and 3 where the batch is free
    assert found.parity.samples == 13
    assert Bundle.open(run.path / "export" / "free").info.inputs[0].shape == ("batch", 3, 16, 24)
    assert not Bundle.open(run.path / "export" / "free").info.compact


@pytest.mark.slow  # exports two models
def test_failed_gate_is_kept_and_marked(compacted: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(compacted.path, tmp_path / "run"))
    found = export_run(run, "tight", TARGET.model_copy(update={"max_megabytes": 0.001}))
    assert not found.passed
    bundle = Bundle.open(run.path / "export" / "tight")
    assert "over 0.001 MB" in bundle.doubt


def test_what_raises_leaves_the_former_bundle(
    compacted: Run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_half_way(model: object, inputs: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half a model")
        raise RuntimeError("broken")

    monkeypatch.setattr("compactmtl.export.writer.export_onnx", fails_half_way)
    with pytest.raises(RuntimeError, match="broken"):
        export_run(compacted, "small", TARGET)
    assert Bundle.open(bundle.path).info == bundle.info
    assert [path.name for path in bundle.path.parent.iterdir()] == ["small"]


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (Target(backend="torch"), ConfigError, "runs no exported file"),
        (
            Target(backend="onnxruntime", provider="NoExecutionProvider"),
            MissingDependencyError,
            "knows no provider 'NoExecutionProvider'",
        ),
    ],
)
def test_target_that_cannot_run_here(
    trained: Run, target: Target, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export_run(trained, "t", target)
    assert not (trained.path / "export").exists()


def test_compact_model_that_was_not_made_of_the_best_checkpoint_is_refused(
    compacted: Run, tmp_path: Path
) -> None:
    """Training went on."""
    run = Run.open(shutil.copytree(compacted.path, tmp_path / "run"))
    best = run.path / "checkpoints" / "best"
    state = load_file(best / "weights.safetensors")
    other = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    save_best(best, other, load_summary(best))
    with pytest.raises(ArtifactError, match="not of its best checkpoint"):
        export_run(run, "t", TARGET)
    with pytest.raises(ArtifactError, match="not of its best checkpoint"):
        Predictor.open(run.path)


@pytest.mark.parametrize("file", ["checkpoints/best/weights.safetensors", "compact/weights.safetensors"])
def test_weights_that_were_exchanged_are_refused(compacted: Run, tmp_path: Path, file: str) -> None:
    run = Run.open(shutil.copytree(compacted.path, tmp_path / "run"))
    state = load_file(run.path / file)
    save_file(
        {name: value + 1 if value.is_floating_point() else value for name, value in state.items()},
        run.path / file,
    )
    with pytest.raises(ArtifactError, match=f"{file} is damaged or was exchanged"):
        export_run(run, "t", TARGET)
    with pytest.raises(ArtifactError, match=f"{file} is damaged or was exchanged"):
        Predictor.open(run.path)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(backend="onnxruntime", latency={"min_speedup": 1.0}), "no dense model to be faster than"),
        (Target(backend="onnxruntime", parity={"tasks": {"dpeth": 0.1}}), "parity.tasks names dpeth"),
    ],
)
def test_a_bound_that_nothing_would_be_held_against_is_refused(
    trained: Run, target: Target, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_run(trained, "t", target)


def test_baseline_on_other_data_is_refused(trained: Run, compacted: Run) -> None:
    data = trained.recipe.data.model_copy(update={"size": (32, 32)})
    other = Run(trained.path, "other", trained.recipe.model_copy(update={"data": data}), trained.meta)
    with pytest.raises(ConfigError, match=r"data\.size \(32, 32\)"):
        export_run(compacted, "t", TARGET, other)


def test_baseline_without_a_task_is_refused(trained: Run, compacted: Run) -> None:
    tasks = {"depth": trained.recipe.tasks["depth"]}
    other = Run(trained.path, "other", trained.recipe.model_copy(update={"tasks": tasks}), trained.meta)
    with pytest.raises(ConfigError, match=r"lacks the tasks \['segmentation'\]"):
        export_run(compacted, "t", TARGET, other)


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("tamper", "error", "message"),
    [
        (
            lambda b: (b / "model.onnx").write_bytes((b / "model.onnx").read_bytes() + b"x"),
            BundleHashError,
            "its hash is off",
        ),
        (lambda b: (b / "model.onnx").unlink(), ArtifactError, r"lacks model\.onnx"),
        (lambda b: (b / "bundle.json").unlink(), ArtifactError, "is not a bundle"),
        (lambda b: (b / "bundle.json").write_text("{"), ArtifactError, "is damaged"),
        (
            lambda b: edit(b / "bundle.json", lambda v: v.update(version=3)),
            BundleVersionError,
            "is of format 3",
        ),
        (
            lambda b: edit(b / "bundle.json", lambda v: v.update(run="other")),
            BundleHashError,
            "is of another bundle",
        ),
        (
            lambda b: edit(b / "bundle.json", lambda v: v.update(model="../model.onnx")),
            ArtifactError,
            "model: String should match",
        ),
        (
            lambda b: edit(b / "bundle.json", lambda v: v.update(model="other.onnx")),
            ArtifactError,
            "not among its files",
        ),
        (
            lambda b: edit(b / "bundle.json", lambda v: v["training"].pop("preprocessing")),  # type: ignore[attr-defined]
            ArtifactError,
            r"training\.preprocessing: Field required",
        ),
        (
            lambda b: edit(b / "verification.json", lambda v: v.pop("gates")),
            ArtifactError,
            "gates: Field required",
        ),
    ],
)
def test_tampering_is_caught(
    copy: Path, tamper: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    tamper(copy)
    with pytest.raises(error, match=message):
        Bundle.open(copy)


def test_unverified_bundle_is_doubted(copy: Path) -> None:
    (copy / "verification.json").unlink()
    with Predictor.open(copy) as predictor:
        assert predictor.doubt == "it was never verified"


def test_run_and_bundle_predict_alike(compacted: Run, bundle: Bundle) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 24), dtype=np.uint8)
    with Predictor.open(compacted.path) as live, Predictor.open(bundle.path) as deployed:
        assert deployed.doubt == ""
        for one, other in zip(live.predict(image), deployed.predict(image), strict=True):
            assert one.task == other.task
            # float32 sums in another order; a class map may flip where two logits tie
            assert np.mean(np.abs(one.value - other.value) > 1e-3) < 0.01


def test_predictor_preprocesses_as_the_loader_does(compacted: Run) -> None:
    from compactmtl.data import build_loader, load_dataset

    config = compacted.recipe.data
    dataset = load_dataset(config, "val")
    batch = next(iter(build_loader(dataset, config, train=False, seed=0)))
    model = compacted.load_compact()
    with torch.inference_mode():
        expected = model(batch["image"][:1])
    with Predictor.open(compacted.path) as predictor:
        found = {one.task: one.value for one in predictor.predict(dataset[0]["image"].numpy())}
    decoded = {name: task.decode(expected[name])[0].numpy() for name, task in compacted.tasks.items()}
    for name, value in decoded.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)  # the same operations


def test_neither_run_nor_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="neither a run nor a bundle"):
        Predictor.open(tmp_path)
