"""What torch.export is asked for, one stage after another, until a graph of a model is there that says all of it.

1. non-strict: the model runs as Python.
2. strict: its bytecode is followed, which takes some code that the first does not.
3. draft: as the first, for custom operators that do not say what shape they give. A draft that follows one branch of those
   that values choose is not taken: it would say nothing of the others.
4. submodules: the smallest modules that cannot be exported are taken whole (see `compactmtl.graph.whole`).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from compactmtl.errors import CompactError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import Arguments, copied, map_tensors
from compactmtl.graph.whole import Call, Whole, apart, taken_whole, together, watch

Export = Callable[[nn.Module, Arguments, Mapping[str, Any]], ExportedProgram]
STAGES = ("non-strict", "strict", "draft", "submodules")


@dataclass(frozen=True)
class Tracing:
    """How a model was traced: the stage that gave the graph, why those before it did not, and modules taken whole with the reason."""

    stage: str = STAGES[0]
    failed: tuple[tuple[str, str], ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)


def first_line(error: BaseException) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


# What says that an export failed and shows the graph so far. The stage after it may do better, and `Tracing` has the reason.
_TALKERS = ("torch.export._trace", "torch.export._draft_export", "torch.fx.experimental.symbolic_shapes")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the terminal what torch says of an export that fails, unless TORCH_LOGS asks for more than usual."""
    if os.environ.get("TORCH_LOGS"):
        yield
        return
    from torch.export import _trace

    names = vars(_trace)
    levels = {logger: logger.level for logger in map(logging.getLogger, _TALKERS)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    names["print"] = lambda *args, **settings: None  # of this file alone: it prints the graph to stderr
    try:
        yield
    finally:
        names.pop("print", None)
        for logger, level in levels.items():
            logger.setLevel(level)


@_silent()
def non_strict(model: nn.Module, args: Arguments, kwargs: Mapping[str, Any]) -> ExportedProgram:
    """The first stage."""
    return torch.export.export(model, args, dict(kwargs), strict=False)


@_silent()
def strict(model: nn.Module, args: Arguments, kwargs: Mapping[str, Any]) -> ExportedProgram:
    """The second stage."""
    return torch.export.export(model, args, dict(kwargs), strict=True)


@_silent()
def draft(model: nn.Module, args: Arguments, kwargs: Mapping[str, Any]) -> ExportedProgram:
    """The third stage. Raises ValueError where values choose what runs."""
    from torch.export._draft_export import FailureType

    with _silent_draft():
        program = torch.export.draft_export(model, args, dict(kwargs), strict=False)
    report = getattr(program, "_report", None)
    for failure in report.failures if report is not None else ():
        if failure.failure_type not in (FailureType.MISSING_FAKE_KERNEL, FailureType.MISMATCHED_FAKE_KERNEL):
            raise ValueError("a draft would follow one branch of those that values choose")
    _Settled(program.graph_module).run(*program._graph_module_flat_inputs(args, dict(kwargs)))
    return program


class _Settled(fx.Interpreter):
    """Gives the results of operators that do not say their shape the shape that they have in a run.

    Those of operators whose shape depends on values, such as an index by a mask, stay open.
    """

    def run_node(self, n: fx.Node) -> Any:
        result, said = super().run_node(n), n.meta.get("val")
        if isinstance(said, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            if any(isinstance(user.meta.get("val"), Tensor) for user in n.users):
                raise ValueError(f"{n.name} takes a size that no operator says for a number")
        elif isinstance(result, Tensor) and isinstance(said, Tensor) and not _has_fixed_size(said):
            by_values = torch.Tag.dynamic_output_shape in getattr(n.target, "tags", ())
            if not by_values and all(_has_fixed_size(source.meta.get("val")) for source in n.all_input_nodes):
                n.meta["val"] = torch.empty(result.shape, dtype=result.dtype, device="meta")
        return result


def _has_fixed_size(value: object) -> bool:
    return not isinstance(value, Tensor) or all(type(size) is int for size in value.shape)


@contextmanager
def _silent_draft() -> Iterator[None]:
    """A draft writes a log file, which it leaves open: it is not kept."""
    from torch.export import _draft_export

    made: list[logging.Handler] = []
    capture: Any = _draft_export.CaptureStructuredTrace

    def noted() -> Any:
        made.append(capture())
        return made[-1]

    variable = "TORCH_DTRACE"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[variable] = folder
        _draft_export.CaptureStructuredTrace = noted  # type: ignore[misc, assignment]
        try:
            yield
        finally:
            _draft_export.CaptureStructuredTrace = capture  # type: ignore[misc]
            for handler in made:
                handler.close()
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before


FIRST: tuple[tuple[str, Export], ...] = (("non-strict", non_strict), ("strict", strict), ("draft", draft))


class _Fed(nn.Module):
    """A module that is given the tensors of a call, whatever they were in."""

    def __init__(self, module: nn.Module, given: Any) -> None:
        super().__init__()
        self.module = module
        self._given = given

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        args, kwargs = together(self._given, tensors)
        results: list[Tensor] = []
        apart(self.module(*args, **kwargs), results)
        return results


class Submodules:
    """The last stage: which modules of a model that cannot be exported have to be taken whole for the rest to be.

    `check` raises where a program is no graph that can be followed, such as one with tensors whose size depends on values.
    """

    def __init__(
        self, model: nn.Module, arguments: Arguments, check: Callable[[ExportedProgram], object]
    ) -> None:
        self._model, self._arguments, self._check = model, arguments, check
        self._calls = watch(model, arguments)
        self._fresh = _on_noise(model, arguments)
        self._reasons: dict[str, str] = {}
        self.reason = "no module of it can be taken whole"  # why it could not be done

    @property
    def called(self) -> frozenset[str]:
        """The modules that the forward calls."""
        return frozenset(self._calls)

    def smallest(self) -> list[Whole] | None:
        """The modules that are taken whole; None where the forward of the model itself is what cannot be exported."""
        paths = self._inside("")
        return None if paths is None or not paths else self.wholes(paths)

    def wholes(self, paths: Sequence[str]) -> list[Whole] | None:
        """These modules, taken whole; None where one of them cannot be."""
        found = [self._whole(path) for path in paths]
        return [whole for whole in found if whole is not None] if all(found) else None

    def _inside(self, path: str) -> list[str] | None:
        """The modules in a module that are taken whole; None where one has to be that cannot."""
        paths: list[str] = []
        for child in self._children(path):
            own = self._minimal(child)
            if own is None:
                return None
            paths += own
        return paths

    def _minimal(self, path: str) -> list[str] | None:
        """The same for a module that may itself be taken whole."""
        failure = self._failure(path, ())
        if failure is None:
            return []
        self._reasons[path] = failure
        inner = self._inside(path)
        if inner:
            wholes = self.wholes(inner)
            if wholes is not None and self._failure(path, wholes) is None:
                return inner
        return [path] if self._whole(path) is not None else None

    def _children(self, path: str) -> list[str]:
        """The modules that the forward of a module calls, each once."""
        return [
            name for name, calls in self._calls.items() if name and any(call.parent == path for call in calls)
        ]

    def _failure(self, path: str, wholes: Sequence[Whole]) -> str | None:
        """Why a module cannot be exported with others inside it taken whole, on what it was given in the run."""
        call = self._calls[path][0]
        tensors: list[Tensor] = []
        fed = _Fed(self._model.get_submodule(path), apart((call.args, call.kwargs), tensors)).eval()
        with borrowed(self._model), taken_whole(self._model, wholes):
            try:
                self._check(non_strict(fed, copied(tensors), {}))
            except Exception as error:
                return error.message if isinstance(error, CompactError) else first_line(error)
        return None

    def _whole(self, path: str) -> Whole | None:
        fresh = None if self._fresh is None else self._fresh.get(path)
        reason = self._reasons.get(path, "it cannot be exported")
        try:
            return Whole(path, self._model.get_submodule(path), self._calls[path], fresh, reason)
        except ValueError as error:
            self.reason = f"{path} cannot be taken whole: {error}"
            return None


def _on_noise(model: nn.Module, arguments: Arguments) -> dict[str, list[Call]] | None:
    """The calls in runs on other values of the same sizes; None where the model does not take them."""
    calls: dict[str, list[Call]] = {}
    for seed, scale in ((0, 1.0), (1, 10.0)):
        generator = torch.Generator().manual_seed(seed)

        def noise(tensor: Tensor, generator: torch.Generator = generator, scale: float = scale) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            drawn = torch.randn(tensor.shape, generator=generator) * scale
            return drawn.to(tensor.device, tensor.dtype)

        try:
            for path, own in watch(model, map_tensors(noise, arguments)).items():
                calls.setdefault(path, []).extend(own)
        except Exception:
            return None
    return calls
