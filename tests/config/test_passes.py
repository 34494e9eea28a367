"""What does not go with a batch in parts, blocks that are computed again and compiled networks is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.config import resolve_recipe
from compactmtl.errors import ConfigError

TINY = Path(__file__).parents[1] / "train" / "tiny.yaml"
PARTS, AGAIN, COMPILED = "train.accumulate=2", "train.checkpoint_activations=true", "train.compile=true"


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ((PARTS, "train.mixup=0.2"), ("train.accumulate", "train.mixup")),
        ((PARTS, "balancing={name: mgda, at: features}"), ("train.accumulate", "balancing.at: features")),
        (
            (PARTS, "regularization={input_gradient: {strength: 0.1}}"),
            ("train.accumulate", "regularization.input_gradient"),
        ),
        (
            (PARTS, "regularization={weight_gradient: {strength: 0.1}}"),
            ("train.accumulate", "regularization.weight_gradient"),
        ),
        (
            (COMPILED, "regularization={weight_gradient: {strength: 0.1}}"),
            ("train.compile", "regularization.weight_gradient"),
        ),
        (("train.compile=eager", AGAIN), ("train.compile", "train.checkpoint_activations")),
        (("train.accumulate=5",), ("train.accumulate: 5 parts", "a batch of 4 images (data.batch_size)")),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(overrides: tuple[str, ...], keys: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_recipe(TINY, list(overrides))
    assert caught.value.exit_code == 2
    for key in keys:
        assert key in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (PARTS, AGAIN),
        (PARTS, COMPILED),
        (PARTS, "regularization={dgr: {strength: 0.1}, sam: {rho: 0.05}}", "balancing={name: upgrad}"),
        (AGAIN, "regularization={input_gradient: {strength: 0.1}}"),
        ("train.accumulate=4",),
    ],
)
def test_what_is_exact_is_taken(overrides: tuple[str, ...]) -> None:
    resolve_recipe(TINY, list(overrides))


@pytest.mark.parametrize(("parts", "at_once"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_images_at_once(parts: int, at_once: int) -> None:
    assert resolve_recipe(TINY, [f"train.accumulate={parts}"]).recipe.images_at_once == at_once


@pytest.mark.parametrize("value", ["inductor", "2", "eagre"])
def test_a_wrong_backend_is_an_error(value: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.compile"):
        resolve_recipe(TINY, [f"train.compile={value}"])
