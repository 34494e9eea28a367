"""What a saved state holds of a shrinking, and whether it is of this very one: the same network, asked for the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compactmtl.config.sparsity import SparsityConfig
from compactmtl.errors import ArtifactError
from compactmtl.sparsity import LatencyTable
from compactmtl.sparsity.saved import check_state
from compactmtl.surgery import Plan

VERSION = 1  # of the state
_STATE = ("network", "asked", "steps", "epochs", "restarted", "removed", "table", "control")


def in_words(config: SparsityConfig, total_steps: int, align: int) -> str:
    """What a shrinking was asked for. Keys that states of earlier versions lack are told only where they say something."""
    new: Any = None if config.losses else {"selective": {"losses", "checks"}}
    asked = config.model_dump_json(exclude_none=True, exclude=new)
    return f"{asked}, total_steps {total_steps}, align {align}"


def read_own(
    state: Mapping[str, Any], network: str, signature: str, asked: str
) -> tuple[Plan, LatencyTable | None]:
    """What was removed, and the table of the start.

    Raises ArtifactError for the state of another network than this one of class `network`, or of other settings, and for
    one that lacks something.
    """
    _check_own(state, network, signature, asked)
    plan, table = Plan.from_json(state["removed"], "the state's plan"), state["table"]
    return plan, None if table is None else LatencyTable.from_json(table, "the state's table")


def _check_own(state: Mapping[str, Any], network: str, signature: str, asked: str) -> None:
    check_state(state, (), "Shrinking")
    if state.get("version") != VERSION:
        raise ArtifactError(
            f"the state has version {state.get('version')!r}, {VERSION} was expected",
            "hand in what Shrinking.state_dict() returned",
        )
    check_state(state, _STATE, "Shrinking")
    if state["network"] != signature:
        raise ArtifactError(
            f"the state is of another network than this {network}: names or shapes differ",
            "build the model as at the start; Shrinking takes it before its weights are loaded or after",
        )
    if state["asked"] != asked:
        raise ArtifactError(
            f"the state is of a shrinking by {state['asked']}, this one is by {asked}",
            "build Shrinking with the arguments of the start",
        )
