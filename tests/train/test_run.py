"""A run on disk: its models come back, what is not one is told apart, and its hash sees what matters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from compactmtl.artifacts.run_folder import check_folder
from compactmtl.config import Resolved
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.overparam import factorized_layers
from compactmtl.runs.checkpoint import load_summary, save_best
from compactmtl.runs.identity import recipe_differences
from compactmtl.train import Run, compact_run, is_run, recipe_hash, train
from tests.support.masking import FLOAT32, assert_close

Make = Callable[..., Resolved]


@pytest.fixture
def run(tmp_path: Path, uninterrupted: tuple[Resolved, Run]) -> Run:
    """A copy of the finished run, to be damaged."""
    shutil.copytree(uninterrupted[1].path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.mark.slow
def test_training_plain_and_compact_forms_are_one_function(run: Run) -> None:
    compact_run(run)
    trained, plain, small = run.load_model(), run.load_plain(), Run.open(run.path).load_compact()
    assert factorized_layers(trained) and not factorized_layers(plain)
    (image,) = run.example_inputs(batch=2)
    with torch.inference_mode():
        expected, contracted, compacted = trained(image), plain(image), small(image)
    assert list(expected) == list(contracted) == list(compacted) == list(run.tasks)
    for task, output in expected.items():
        size = float(output.abs().max())
        # float32: contraction and removal sum in another order
        torch.testing.assert_close(contracted[task], output, rtol=0, atol=1e-5 * size)
        torch.testing.assert_close(compacted[task], output, rtol=0, atol=1e-5 * size)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in plain.parameters())


@pytest.mark.slow
def test_surgery_finds_what_training_promised(run: Run) -> None:
    best_epoch = run.log()[-1]["best_epoch"]
    promised = run.log()[best_epoch]["sparsity"]["macs_removable"]
    result = compact_run(run)
    # align may hold back channels, so surgery never removes more; here all counts are multiples already
    assert result.report.mac_reduction == pytest.approx(promised, abs=1e-6)


def test_the_best_checkpoint_has_the_metrics_it_was_chosen_for(run: Run) -> None:
    from compactmtl.data import build_loader, load_dataset
    from compactmtl.verify.accuracy import evaluate, torch_runner

    loader = build_loader(load_dataset(run.recipe.data, "val"), run.recipe.data, train=False, seed=0)
    found = evaluate(torch_runner(run.load_model("best")), loader, run.tasks)
    for task, metrics in run.best.items():
        assert found[task] == pytest.approx(metrics, rel=1e-5)  # another thread count sums in another order


def test_tasks_are_those_of_training_without_the_data(run: Run) -> None:
    assert run.tasks["segmentation"].spec.ignore_index == 255
    assert run.tasks["segmentation"].spec.classes[0] == "floor"
    assert run.tasks["depth"].spec.unit == "m"


def test_a_folder_that_is_no_run_says_what_is_nearby(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ArtifactError, match="is not a run: there is no such folder") as caught:
        Run.open(tmp_path / "rnu")
    assert str(run.path) in caught.value.hint
    with pytest.raises(ArtifactError, match="is not a run") as caught:
        Run.open(tmp_path)
    assert str(run.path) in caught.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="it is a file"):
        Run.open(tmp_path / "file")


def test_a_folder_with_nothing_nearby_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        Run.open(tmp_path / "none")
    assert "compactmtl train" in caught.value.hint


def test_a_run_without_checkpoint_or_compact_model_says_so(run: Run) -> None:
    with pytest.raises(ArtifactError, match="has no compact model") as caught:
        run.load_compact()
    assert "compactmtl compact" in caught.value.hint
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(ArtifactError, match="holds no checkpoint yet"):
        run.load_model("best")
    with pytest.raises(ArtifactError, match="holds no checkpoint yet"):
        run.load_model("last")


def test_a_checkpoint_of_another_recipe_is_refused(run: Run) -> None:
    best = run.path / "checkpoints" / "best"
    state = load_file(best / "weights.safetensors")
    save_best(best, state, load_summary(best) | {"recipe_hash": "0" * 64})
    with pytest.raises(ArtifactError, match="checkpoint of another recipe"):
        run.load_model()


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99}'])
def test_damaged_or_foreign_meta_data_are_named(run: Run, text: str) -> None:
    (run.path / "meta.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"meta\.json"):
        Run.open(run.path)


def test_a_damaged_log_line_is_named(run: Run) -> None:
    path = run.path / "log.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    with pytest.raises(ArtifactError, match=r"log\.jsonl:2: "):
        run.log()


@pytest.mark.slow
def test_compacting_again_replaces_the_old_result(run: Run) -> None:
    compact_run(run, align=1)
    first = json.loads((run.path / "compact" / "surgery.json").read_text())
    (run.path / "compact" / "old").write_text("")
    compact_run(run, align=16)
    second = json.loads((run.path / "compact" / "surgery.json").read_text())
    assert second["macs"]["after"] > first["macs"]["after"]
    assert not (run.path / "compact" / "old").exists()


@pytest.mark.parametrize(
    "override",
    ["data.workers=2", "data.cache=none", "train.threads=2", "description=other", "surgery.align=16"],
)
def test_the_hash_does_not_see_where_a_run_happens(tiny: Make, override: str) -> None:
    assert recipe_hash(tiny(override).recipe) == recipe_hash(tiny().recipe)
    assert recipe_differences(tiny(override).recipe, tiny().recipe) == []


@pytest.mark.parametrize(
    "override", ["seed=1", "train.epochs=4", "data.batch_size=5", "tasks.depth.weight=2"]
)
def test_the_hash_sees_what_decides_the_result(tiny: Make, override: str) -> None:
    assert recipe_hash(tiny(override).recipe) != recipe_hash(tiny().recipe)
    (difference,) = recipe_differences(tiny(override).recipe, tiny().recipe)
    assert difference.startswith(override.partition("=")[0])


def test_a_folder_is_free_taken_or_a_run(tmp_path: Path, run: Run) -> None:
    check_folder(tmp_path / "new", resume=False, overwrite=False)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", resume=False, overwrite=False)
    check_folder(run.path, resume=True, overwrite=False)
    check_folder(run.path, resume=False, overwrite=True)
    assert is_run(run.path) and not is_run(tmp_path)
    with pytest.raises(ConfigError, match="exclude each other"):
        check_folder(run.path, resume=True, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    ["per_task: true", "{rank: 0.2, keep_factors_below: 0.8}", "{kind: repvgg}", "{kind: cp, rank: 0.5}"],
)
def test_whatever_form_is_deployed_compacts_and_comes_back(
    tmp_path: Path, tiny: Make, quiet: Callable[[], Console], options: str
) -> None:
    more = f"\noverparam: {options if options.startswith('{') else f'{{{options}}}'}\n"
    run = train(tiny("train.epochs=1", more=more), tmp_path / "run", console=quiet())
    report = compact_run(run).report
    assert report.proof.passed
    (image,) = run.example_inputs(2)
    with torch.no_grad():
        trained, plain, small = (m(image) for m in (run.load_model(), run.load_plain(), run.load_compact()))
    for task in trained:
        # float32 through about twenty layers, each of which may magnify the rounding of the one before
        assert_close(plain[task], trained[task], 10 * FLOAT32)
        assert_close(small[task], plain[task], 10 * FLOAT32)
    thin = [m for m in run.load_plain().modules() if type(m) is torch.nn.Sequential and hasattr(m, "U")]
    assert bool(thin) == ("keep_factors_below" in options)
