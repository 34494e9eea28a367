"""How much fresh predictors make of frozen features: linear, nearest neighbors, random forest, small network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compactmtl.errors import ConfigError, DataError, MissingDependencyError

Array = NDArray[Any]
Predictor = Literal["linear", "knn", "forest", "mlp"]
Target = Literal["class", "scalar"]

PREDICTORS: tuple[Predictor, ...] = ("linear", "knn", "forest", "mlp")
METRICS: Mapping[Target, str] = {"class": "accuracy", "scalar": "mae"}
NEIGHBORS = 15
TREES = 100
EARLY = 100  # samples from which a tenth can tell when to stop
HIDDEN = 64  # as wide as the heads of arXiv:2409.16651


def probe_features(
    train: tuple[Array, Array],
    val: tuple[Array, Array],
    target: Target,
    *,
    predictors: Sequence[Predictor] = PREDICTORS,
    seed: int = 0,
    jobs: int = 1,
) -> dict[str, float]:
    """Each predictor, fitted on `train` and scored on `val`: accuracy of a class, mean absolute error of a scalar.

    A split is features (N, C) and targets (N,). Features are standardized by the training split's statistics.

    Raises MissingDependencyError without scikit-learn, ConfigError for an unknown predictor, DataError where a split is
    empty or has one class alone.
    """
    for name in predictors:
        if name not in PREDICTORS:
            raise ConfigError(f"no predictor {name!r}", f"choose of {', '.join(PREDICTORS)}")
    if not len(train[1]) or not len(val[1]):
        raise DataError("nothing to probe: a split has no sample whose target is known", "check the data set")
    if target == "class" and len(np.unique(train[1])) < 2:
        raise DataError("nothing to probe: the training split has one class alone", "take more samples")
    scores: dict[str, float] = {}
    for name in predictors:
        model = _model(name, target, len(train[1]), seed, jobs)
        with warnings.catch_warnings():  # a network that has not converged in time is judged as it is
            warnings.filterwarnings("ignore", message=".*converge", category=UserWarning)
            model.fit(np.asarray(train[0], np.float64), train[1])
        predicted = model.predict(np.asarray(val[0], np.float64))
        right = predicted == val[1] if target == "class" else np.abs(predicted - val[1])
        scores[name] = float(np.mean(right))
    return scores


def _model(name: Predictor, target: Target, samples: int, seed: int, jobs: int) -> Any:
    """The predictor behind a standardization."""
    try:
        from sklearn import ensemble, linear_model, neighbors, neural_network
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingDependencyError(
            "probing needs scikit-learn", "pip install 'compactmtl[probe]'"
        ) from error
    classes = target == "class"
    network = {
        "hidden_layer_sizes": (HIDDEN,),
        "random_state": seed,
        "early_stopping": samples >= EARLY,
        "max_iter": 200,
    }
    models: dict[Predictor, Any] = {
        "linear": linear_model.LogisticRegression(max_iter=2000) if classes else linear_model.Ridge(),
        "knn": (neighbors.KNeighborsClassifier if classes else neighbors.KNeighborsRegressor)(
            min(NEIGHBORS, samples), n_jobs=jobs
        ),
        # a third of the features for a number, the root of them for a class: Breiman's choices
        "forest": (ensemble.RandomForestClassifier if classes else ensemble.RandomForestRegressor)(
            TREES, random_state=seed, n_jobs=jobs, max_features="sqrt" if classes else 1 / 3
        ),
        "mlp": neural_network.MLPClassifier(**network)
        if classes
        # its loss is a squared error: a target in years would need other steps than one in meters
        else TransformedTargetRegressor(neural_network.MLPRegressor(**network), transformer=StandardScaler()),
    }
    return make_pipeline(StandardScaler(), models[name])
