"""What surgery.align: auto comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.backends import align_of, get_backend, load_target, surgery_align
from compactmtl.config import load_recipe
from compactmtl.errors import ConfigError


def test_auto_is_what_the_targets_run_best() -> None:
    found = align_of(load_recipe("scenes/dense", ["targets=[onnxruntime-cpu-int8]"]))
    assert found.channels == 4 and "onnxruntime-cpu-int8" in found.source
    assert align_of(load_recipe("scenes/dense")).channels == 16
    both = ["targets=[onnxruntime-cpu-int8, tensorrt-fp16]"]
    assert align_of(load_recipe("scenes/dense", both)).channels == 8


def test_a_number_stays_what_it_is() -> None:
    assert align_of(load_recipe("scenes/dense", ["surgery.align=3"])).channels == 3


def test_a_target_may_state_its_own() -> None:
    assert channel_step("onnxruntime-cpu", "align=32") == 32
    assert channel_step("tensorrt-int8") == 16
    assert channel_step("onnxruntime-tensorrt", "precision=int8") == 16


def channel_step(name: str, *overrides: str) -> int:
    target = load_target(name, overrides)
    return get_backend(target.backend).channel_step(target)


def test_without_a_target_it_is_stated() -> None:
    found = align_of(load_recipe("scenes/dense", ["targets=[]"]))
    assert found.channels == 16 and "without a target" in found.source


def test_an_unknown_target_is_named_with_the_key(tmp_path: Path) -> None:
    recipe = load_recipe("scenes/dense", ["targets=[nonesuch]"])
    with pytest.raises(ConfigError, match=r"surgery\.align: auto reads the recipe's targets: .*nonesuch"):
        align_of(recipe)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("controller: {mac_reduction: 0.5, end: 0}", r"sparsity\.controller\.end"),
        ("selective: {mac_reduction: 0}", r"sparsity\.selective\.mac_reduction"),
        ("selective: {parameter_reduction: 1}", r"sparsity\.selective\.parameter_reduction"),
        ("selective: {mac_reduction: 0.5, start: 0.6, end: 0.6}", r"sparsity\.selective\.start"),
        ("selective: {mac_reduction: 0.5, min_share: 1}", r"sparsity\.selective\.min_share"),
        ("prune: {mac_reduction: 0.5, at: 1}", r"sparsity\.prune\.at"),
        ("strength: 0.1\n  warmup: 1", r"sparsity\.warmup"),
        ("controller: {mac_reduction: 0.5, end: 0.3}\n  warmup: 0.4", r"sparsity\.warmup .*controller\.end"),
        ("strength: 0.1\n  groups: input_channel\n  shrink_every: 1", r"sparsity\.shrink_every"),
    ],
)
def test_a_bound_that_leaves_nothing_to_do_is_refused(words: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"extends: scenes/dense\nsparsity:\n  {words}\n")
    with pytest.raises(ConfigError, match=key):
        load_recipe(str(path))


def test_surgery_adds_no_dead_channels_to_what_a_latency_budget_chose() -> None:
    budget = ["sparsity.selective.latency={target: onnxruntime-cpu, speedup: 2}"]
    assert surgery_align(load_recipe("scenes/dense", budget)).channels == 1
    assert surgery_align(load_recipe("scenes/dense", [*budget, "surgery.align=8"])).channels == 8
    assert surgery_align(load_recipe("scenes/dense")).channels == 16
