"""A run in an MLflow store: parameters, each epoch once, the paths of its files, and a store that fails for a while."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compactmtl.config import resolve_recipe
from compactmtl.config.tracking import MlflowConfig
from compactmtl.errors import ConfigError, MissingDependencyError
from compactmtl.runs.identity import recipe_hash
from compactmtl.train import Run, train
from compactmtl.train import mlflow_log as module
from tests.support.interrupting import trained_in_two_parts

TINY = Path(__file__).parent / "tiny.yaml"


def recipe(store: str, *more: str) -> Any:
    return resolve_recipe(TINY, [f"train.mlflow.uri={store}", "train.epochs=2", *more])


@pytest.fixture
def store(tmp_path: Path) -> str:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def logged(store: str, run: Run) -> tuple[Any, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    return client, client.get_run(json.loads((run.path / "mlflow.json").read_text())["run_id"])


@pytest.mark.slow
def test_a_run_that_was_interrupted_is_one_run_there_with_each_epoch_once(tmp_path: Path, store: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    run = trained_in_two_parts(recipe(store), tmp_path / "run", console, steps=6)
    client, there = logged(store, run)
    assert there.info.status == "FINISHED" and there.info.run_name == "run"
    assert there.data.params["train.optimizer.lr"] == "0.002"
    assert there.data.params["model.encoder.name"] == "resnet10t"
    assert there.data.tags["compactmtl.run"] == str(run.path.resolve())
    assert Path(there.data.tags["compactmtl.best"]).exists()
    epochs = [event for event in run.log() if event["event"] == "epoch"]
    history = client.get_metric_history(there.info.run_id, "val/depth/abs_err")
    assert [(one.step, one.value) for one in history] == [
        (event["step"], event["val"]["depth"]["abs_err"]) for event in epochs
    ]
    assert [one.value for one in client.get_metric_history(there.info.run_id, "epoch")] == [1, 2]
    assert math.isclose(there.data.metrics["best/depth/abs_err"], run.best["depth"]["abs_err"])
    (experiment,) = client.search_experiments(filter_string="name = 'compactmtl'")
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.slow
def test_a_store_that_fails_for_a_while_gets_everything_at_the_end(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    real, failing = MlflowClient.log_batch, [True]

    def log_batch(self: Any, run_id: str, metrics: Any = (), **more: Any) -> Any:
        if metrics and failing:
            failing.pop()
            raise MlflowException("the database is locked")
        return real(self, run_id, metrics=metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    console = Console(file=io.StringIO(), width=200)
    run = train(recipe(store), tmp_path / "run", console=console)
    client, there = logged(store, run)
    assert "MLflow did not take what was logged" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [one.value for one in client.get_metric_history(there.info.run_id, "epoch")] == [1, 2]


@pytest.mark.slow
def test_a_failed_training_is_failed_there(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compactmtl.train.session import Session

    def broken(self: Session, batch: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Session, "forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        train(recipe(store), tmp_path / "run", console=Console(file=io.StringIO()))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    begun = json.loads((tmp_path / "run" / "mlflow.json").read_text())["run_id"]
    assert client.get_run(begun).info.status == "FAILED"


@pytest.mark.slow
def test_a_store_that_cannot_be_opened_is_said_before_a_run_is_made(tmp_path: Path, store: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.mlflow\.uri: .*cannot be opened"):
        train(recipe("nonsense://store"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_mlflow_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependencyError(
            "train.mlflow: MLflow cannot be imported", "pip install 'compactmtl[mlflow]'"
        )

    monkeypatch.setattr(module, "_require", missing)
    with pytest.raises(MissingDependencyError) as caught:
        train(recipe("sqlite:///x.db"), tmp_path / "run")
    assert caught.value.exit_code == 3 and not (tmp_path / "run").exists()


def test_where_a_run_is_logged_decides_nothing() -> None:
    plain = resolve_recipe(TINY, ["train.epochs=2"]).recipe
    assert recipe_hash(recipe("sqlite:///x.db").recipe) == recipe_hash(plain)
    assert recipe_hash(recipe("sqlite:///y.db", "train.mlflow.experiment=z").recipe) == recipe_hash(plain)


def test_names_that_mlflow_takes() -> None:
    assert module.scalars({"val": {"age@utkface": {"mae": 1.5}}, "n": 2, "done": True, "text": "x"}) == [
        ("val/age@utkface/mae", 1.5),
        ("n", 2.0),
    ]
    assert module._name("val/age@utkface/mae") == "val/age-utkface/mae"


def test_a_database_that_does_not_answer_is_said_without_its_password(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.tracking
    from sqlalchemy.exc import OperationalError

    def refused(**given: Any) -> Any:
        raise OperationalError("connect", None, ValueError("Connection refused"))

    monkeypatch.setattr(mlflow.tracking, "MlflowClient", refused)
    config = MlflowConfig(uri="postgresql+psycopg://me:sec:r@et@host/x", experiment="rooms")
    with pytest.raises(ConfigError, match="Connection refused") as caught:
        module.check_store(config)
    assert "postgresql+psycopg://me:***@host/x" in caught.value.message
    assert "its server runs" in caught.value.hint
