"""Where a run's log goes beside its own folder."""

from __future__ import annotations

from pydantic import Field

from compactmtl.config.schema import Frozen


class MlflowConfig(Frozen):
    """A run in an MLflow store."""

    uri: str = Field(
        "sqlite:///mlflow.db",
        description="Tracking store as MLflow names it, such as `sqlite:///mlflow.db` or a server's URL. A relative path "
        "begins at the working folder.",
    )
    experiment: str = Field(
        "compactmtl", min_length=1, description="Experiment of the store. It is made where it is missing."
    )
