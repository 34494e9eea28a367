"""A run in an MLflow store: its recipe as parameters, each epoch as metrics, the paths of its files as tags.

The run's own log stays the record. What a store does not take at once is sent after the next epoch.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import BEST, CHECKPOINTS, LOG, MLFLOW, RECIPE
from compactmtl.artifacts.run_folder import read_log
from compactmtl.config import Recipe
from compactmtl.config.tracking import MlflowConfig
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError, first_line
from compactmtl.runs.identity import deciding

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_PARAMS, _METRICS = 100, 1000  # as many as MLflow takes at once
_LONGEST = 500  # characters of a parameter's value that every store takes
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/]*@")
_FOREIGN = re.compile(r"[^\w.\-/ ]", re.ASCII)  # what a name may not hold


def check_store(config: MlflowConfig) -> None:
    """Raise MissingDependencyError where MLflow cannot be imported, ConfigError where its store cannot be opened."""
    _require()
    from mlflow.tracking import MlflowClient

    with _opening(config):
        MlflowClient(tracking_uri=config.uri).get_experiment_by_name(config.experiment)


@contextmanager
def _opening(config: MlflowConfig) -> Iterator[None]:
    try:
        yield
    except _failures(ImportError) as error:
        shown = _PASSWORD.sub(r"\1***@", config.uri)
        raise ConfigError(
            f"train.mlflow.uri: {shown} cannot be opened: {first_line(error)}",
            "see that its server runs and lets you in, name a store such as sqlite:///mlflow.db, or set train.mlflow=null",
        ) from error


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What a store raises that cannot be reached, and `more`. MLflow lets through what a database says as it is connected."""
    from mlflow.exceptions import MlflowException

    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:  # a server's store needs none
        return (MlflowException, OSError, *more)
    return (MlflowException, SQLAlchemyError, OSError, *more)


def _require() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report its use over the network
    try:
        import mlflow.tracking  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"train.mlflow: MLflow cannot be imported: {error}", "pip install 'compactmtl[mlflow]'"
        ) from error


class MlflowLog:
    """The MLflow run of the run folder `path`; a resumed run goes on with the one that it began.

    Raises MissingDependencyError without MLflow, ConfigError where its store cannot be opened, ArtifactError for a
    damaged mlflow.json.
    """

    def __init__(self, config: MlflowConfig, path: Path, recipe: Recipe, say: Callable[[str], None]) -> None:
        _require()
        from mlflow.tracking import MlflowClient

        self._path = path
        self._say = say
        self._lost = False  # whether the last try failed
        with _opening(config):
            self._client = MlflowClient(tracking_uri=config.uri)
            experiment = _experiment(self._client, config.experiment)
            self._id = _known(path, config.uri, self._client) or self._begin(config, experiment, recipe)
            history = self._client.get_metric_history(self._id, "epoch")
        self._sent = {int(one.value) for one in history}

    def _begin(self, config: MlflowConfig, experiment: str, recipe: Recipe) -> str:
        """A new run of the store, with the recipe; told to the run folder before it is filled."""
        from mlflow.entities import Param

        folder = self._path.resolve()
        tags = {
            "compactmtl.run": str(folder),
            "compactmtl.recipe": str(folder / RECIPE),
            "compactmtl.log": str(folder / LOG),
            "compactmtl.best": str(folder / CHECKPOINTS / BEST),
        }
        run = self._client.create_run(experiment, run_name=folder.name, tags=tags)
        begun: str = run.info.run_id
        write_text(self._path / MLFLOW, json.dumps({"version": 1, "uri": config.uri, "run_id": begun}) + "\n")
        params = [
            Param(_name(key), text[:_LONGEST])
            for key, value in deciding(recipe).items()
            if (text := value if isinstance(value, str) else json.dumps(value))
        ]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(begun, params=params[first : first + _PARAMS])
        return begun

    def epochs(self) -> None:
        """Send the epochs of the log that the store lacks."""
        self._try(self._send_epochs)

    def end(self, status: str) -> None:
        """Send what is left, with the end's metrics, and set the status: FINISHED, KILLED or FAILED."""

        def finish() -> None:
            self._send_epochs()
            for event in read_log(self._path / LOG):
                if event.get("event") == "end":
                    values = {"best": event["best"], "deployed_val": event["val"]}
                    self._send(values, event["best_epoch"])
            self._client.set_terminated(self._id, status)

        self._try(finish)
        if self._lost:
            self._say(f"MLflow lacks a part of this run: {self._path / LOG} has all of it")

    def _send_epochs(self) -> None:
        for event in read_log(self._path / LOG):
            if event.get("event") == "epoch" and event["epoch"] not in self._sent:
                self._send({key: value for key, value in event.items() if key != "event"}, event["step"])
                self._sent.add(event["epoch"])

    def _send(self, values: Mapping[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        stamp = time.time_ns() // 1_000_000
        found = [Metric(_name(key), value, stamp, step) for key, value in scalars(values)]
        for first in range(0, len(found), _METRICS):
            self._client.log_batch(self._id, metrics=found[first : first + _METRICS])

    def _try(self, work: Callable[[], None]) -> None:
        """A store that fails now does not end a training: it is said, and tried again."""
        try:
            work()
            self._lost = False
        except _failures() as error:
            if not self._lost:
                self._say(f"MLflow did not take what was logged, and is tried again: {first_line(error)}")
            self._lost = True


def scalars(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested mappings, by their keys joined with slashes."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", float(value)))
    return found


def _name(key: str) -> str:
    """A name that MLflow takes, such as age-utkface for age@utkface."""
    return _FOREIGN.sub("-", key)


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made: str = client.create_experiment(name)
            return made
        except MlflowException:  # another worker has just made it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    known: str = found.experiment_id
    return known


def _known(path: Path, uri: str, client: MlflowClient) -> str | None:
    """The run that this folder began in the store; None where there is none, or the store has lost it."""
    from mlflow.exceptions import MlflowException

    file = path / MLFLOW
    if not file.is_file():
        return None
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        begun, where = str(written["run_id"]), written["uri"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} is damaged: {error!r}", "delete it: the run then begins anew in MLflow"
        ) from error
    if where != uri:
        return None
    try:
        client.update_run(begun, status="RUNNING")
    except MlflowException:
        return None
    return begun
