"""Whether a saved state has all that its loader reads: a clear error in place of a KeyError half-way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compactmtl.errors import ArtifactError

RESUME = "resume with the model and the settings that it was saved with"
_MEND = "load a whole state, as state_dict() returned it"


def check_state(state: object, keys: Iterable[str], what: str) -> None:
    """Raise ArtifactError where the saved state of `what` is no mapping, or lacks one of `keys`."""
    if not isinstance(state, Mapping):
        raise ArtifactError(
            f"the saved state of {what} is a {type(state).__name__}, a mapping was expected", _MEND
        )
    missing = [key for key in keys if key not in state]
    if missing:
        raise ArtifactError(f"the saved state of {what} lacks {', '.join(missing)}", _MEND)
