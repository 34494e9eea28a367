"""Lines of `compactmtl profile --explain`: the gap between MACs and time, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    from compactmtl.verify.result import Explanation, Profile

MOST_LAYERS = 4


def check_explain(explain: bool, models: int, *, layers: bool) -> None:
    """Raise ConfigError where the options leave nothing to explain."""
    if explain and models < 2:
        raise ConfigError(
            "--explain compares models", "name the dense one first: profile DENSE SMALL --explain"
        )
    if explain and not layers:
        raise ConfigError("--explain needs the time of single layers", "leave out --no-layers")


def explained(result: Profile) -> Profile:
    """The profile with each model's explanation against the reference.

    Raises ArtifactError where the runtime has no profile of layers or a file's MACs are not known.
    """
    from compactmtl.verify.explain import explain

    reference = result.latency.reference
    names = [name for name in result.subjects if name != reference]
    found = tuple(explain(result.latency, result.subjects, name, reference) for name in names)
    return result.model_copy(update={"explanations": found})


def explanations(result: Profile) -> Iterator[str]:
    """All explanations in lines for a terminal; none where none was asked for."""
    for one in result.explanations:
        yield from lines(one)


def lines(found: Explanation) -> Iterator[str]:
    """One explanation: a line a part with its layers, and what would help."""
    from compactmtl.verify.explain import doubt, in_words

    yield ""
    yield in_words(found)
    for part in found.parts:
        yield f"  {part.milliseconds:+8.4f} ms {_share(part.milliseconds, found.gap)}  {part.what}"
        if layers := {name: ms for name, ms in part.layers.items() if ms}:
            shown = list(layers.items())[:MOST_LAYERS]
            more = f", {len(layers) - len(shown)} more" if len(layers) > len(shown) else ""
            yield f"{'':22}in " + ", ".join(f"{name} {ms:+.4f}" for name, ms in shown) + more
        if part.advice and part.milliseconds > 0.05 * abs(found.gap):
            yield f"{'':22}what helps: {part.advice}"
    yield f"  {found.remainder:+8.4f} ms {_share(found.remainder, found.gap)}  in no step of the profiles"
    yield f"  {found.gap:+8.4f} ms  100 %  in all"
    if note := doubt(found):
        yield f"  note: {note}"


def _share(ms: float, gap: float) -> str:
    return f"{100 * ms / gap:4.0f} %" if gap else "     —"
