"""Fresh predictors find what features hold, and no more."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from compactmtl.errors import ConfigError, DataError, MissingDependencyError
from compactmtl.verify.probe import PREDICTORS, Array, probe_features

Split = tuple[Array, Array]


def splits(*, informative: bool = True, scalar: bool = False) -> tuple[Split, Split]:
    """Three clouds of points, and their classes or a number that grows along one axis."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        classes = rng.integers(0, 3, count)
        features = rng.normal(size=(count, 6)).astype(np.float32)
        if informative:
            features[np.arange(count), classes] += 6
        # a scale that distances would be lost in without standardization
        features[:, 5] *= 1e4
        return features, (10.0 * features[:, 0] + 30) if scalar else classes

    return split(300), split(120)


@pytest.mark.parametrize("name", PREDICTORS)
def test_classes_that_features_separate_are_found(name: str) -> None:
    (score,) = probe_features(*splits(), "class", predictors=[name]).values()  # type: ignore[list-item]
    assert score > 0.9


@pytest.mark.slow
def test_features_without_the_target_give_chance() -> None:
    scores = probe_features(*splits(informative=False), "class")
    assert all(0.15 < score < 0.55 for score in scores.values())  # a third, over 120 samples


@pytest.mark.parametrize("name", PREDICTORS)
def test_numbers_are_scored_by_their_mean_absolute_error(name: str) -> None:
    train, val = splits(scalar=True)
    (score,) = probe_features(train, val, "scalar", predictors=[name]).values()  # type: ignore[list-item]
    median = float(np.abs(val[1] - np.median(train[1])).mean())
    assert score < 0.6 * median
    if name == "linear":
        assert score < 0.5  # the target is linear; ridge shrinks a little


@pytest.mark.slow
def test_the_seed_decides() -> None:
    one, same, other = (
        probe_features(*splits(informative=False), "class", predictors=["forest", "mlp"], seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_what_cannot_be_probed() -> None:
    train, val = splits()
    with pytest.raises(ConfigError, match="no predictor 'svm'"):
        probe_features(train, val, "class", predictors=["svm"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="one class alone"):
        probe_features((train[0], np.zeros(300, int)), val, "class")
    with pytest.raises(DataError, match="no sample"):
        probe_features(train, (val[0][:0], val[1][:0]), "class")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match="scikit-learn") as caught:
        probe_features(*splits(), "class")
    assert caught.value.exit_code == 3
    assert "compactmtl[probe]" in caught.value.hint
