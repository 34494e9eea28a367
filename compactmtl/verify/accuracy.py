"""The tasks' own metrics over a whole split, of a torch module or of an exported model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compactmtl.backends.base import Runner
from compactmtl.backends.batching import run_batched
from compactmtl.data.base import Batch
from compactmtl.data.inputs import Images, between, count, given, parts, size_of, to_device
from compactmtl.errors import ArtifactError, DataError
from compactmtl.graph.float32 import float32_products
from compactmtl.tasks import Task
from compactmtl.tasks.base import Metrics, ReferenceMetrics
from compactmtl.tasks.by_source import on_source, rows_by_source, task_of
from compactmtl.verify.joining import Met
from compactmtl.verify.result import TaskMetrics

if TYPE_CHECKING:
    from compactmtl.tasks.instance_scoring import InstanceReference

Run = Callable[[Any], Mapping[str, Tensor]]  # `Images`, such as (B, 3, H, W), to {task: output}


def evaluate(
    run: Run,
    loader: Iterable[Batch],
    tasks: Mapping[str, Task],
    *,
    finite: bool = False,
    joined: Callable[[], None] | None = None,
) -> TaskMetrics:
    """Every metric of every task over all batches of `loader`, accumulated exactly; {task: {metric: value}}.

    A task that several data sets label has those on each beside those on all, as {task@source: {metric: value}}.
    `run` maps a batch of images to the raw outputs by task (see `torch_runner` and `array_runner`); outputs of other
    names are passed over. A task whose output held NaN, on one image or more, has NaN for every metric: an argmax over
    NaN is a class, and its metrics would be numbers. With `finite` so has one whose output held infinity. float32 is
    multiplied in full precision on GPUs, too.

    Where several processes have a part of the batches each, `joined` is called when this one has done its part; then what all have met is
    put together, and all return the same.

    Raises ArtifactError where `run` leaves a task out or gives an output of a wrong shape, DataError where the split is
    empty, lacks a target, or knows no element of one.
    """
    with run.held() if isinstance(run, ModuleRun) else nullcontext(), float32_products():
        return _evaluate(run, loader, tasks, finite, joined)


def evaluate_parts(
    run: Run, loader: Iterable[Batch], tasks: Mapping[str, Task], parts: int
) -> tuple[TaskMetrics, list[TaskMetrics]]:
    """As `evaluate`, in the same pass also on each of some `parts` of the data, sample i in part i mod `parts`.

    A part in which a task has no known element has no metrics of that task, and neither has one without what its metrics are of, such as
    an instance or a boundary. A task's metrics on its data sets apart are not
    among them.
    """
    with run.held() if isinstance(run, ModuleRun) else nullcontext(), float32_products():
        split = [{name: task.metrics() for name, task in tasks.items()} for _ in range(parts)]
        known: list[set[str]] = [set() for _ in range(parts)]
        first = 0

        def note(batch: Batch, outputs: Mapping[str, Tensor]) -> None:
            nonlocal first
            size = len(batch["image"])
            for number in range(min(parts, size)):
                rows = list(range(number, size, parts))
                part = (first + number) % parts
                for name, task in tasks.items():
                    target = batch["targets"][task.target][rows]
                    if bool(task.known(target).any()):
                        _update(
                            split[part][name], outputs[name][rows], target, _references(batch, task, rows)
                        )
                        known[part].add(name)
            first += size

        whole = _evaluate(run, loader, tasks, False, note=note)
        found: list[TaskMetrics] = []
        for one, names in zip(split, known, strict=True):
            found.append({})
            for name in (name for name in one if name in names):
                with suppress(DataError):  # the whole has been computed
                    found[-1][name] = one[name].compute()
        return {name: whole[name] for name in tasks}, found


def evaluate_on(
    model: nn.Module,
    device: torch.device | str,
    loader: Iterable[Batch],
    tasks: Mapping[str, Task],
    *,
    finite: bool = False,
) -> TaskMetrics:
    """`evaluate` of a module on `device`, which is then put back to where it was."""
    before = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    try:
        return evaluate(torch_runner(model.to(device), device), loader, tasks, finite=finite)
    finally:
        model.to(before)


def _evaluate(
    run: Run,
    loader: Iterable[Batch],
    tasks: Mapping[str, Task],
    finite: bool,
    joined: Callable[[], None] | None = None,
    note: Callable[[Batch, Mapping[str, Tensor]], None] | None = None,
) -> TaskMetrics:
    met = Met({name: task.metrics() for name, task in tasks.items()}, {name: {} for name in tasks})
    apart: Collection[str] = getattr(loader, "labeled_apart", ())
    for batch in loader:
        outputs = run(given(batch))
        for name, task in tasks.items():
            if name not in outputs:
                raise ArtifactError(
                    f"the model gives no output {name!r}; it gives {', '.join(outputs) or 'none'}",
                    "evaluate it with the recipe that it was trained with",
                )
            if task.target not in batch["targets"]:
                raise DataError(
                    f"the split has no target {task.target!r} for task {name!r}",
                    "check the data set and the recipe",
                )
            target = batch["targets"][task.target]
            _check_shape(task, outputs[name], batch["image"])
            output, found = outputs[name].detach(), met.metrics[name]
            if bool((~output.isfinite() if finite else output.isnan()).any()):
                met.broken.add(name)
            references = _references(batch, task)
            met.note(found)
            _update(found, output, target, references)
            sources = batch.get("sources", []) if task.target in apart else []
            for source, rows in rows_by_source(sources).items():
                known_by = [references[row] for row in rows] if references is not None else None
                if bool(task.known(target[rows]).any()):
                    own = met.by_source[name].setdefault(source, task.metrics())
                    met.note(own)
                    _update(own, output[rows], target[rows], known_by)
        if note is not None:
            note(batch, {name: outputs[name].detach() for name in tasks})
        met.batches += 1
    if joined is not None:
        joined()
        met.join(tasks)
    if not met.batches:
        raise DataError(
            "the split to evaluate on is empty",
            "look at the data set: `compactmtl data check NAME root=FOLDER`",
        )
    computed = {name: found.compute() for name, found in met.metrics.items()}
    computed |= {
        on_source(name, source): found.compute()
        for name, sources in met.by_source.items()
        if len(sources) > 1
        for source, found in sources.items()
    }
    return {
        name: dict.fromkeys(values, math.nan) if task_of(name) in met.broken else values
        for name, values in computed.items()
    }


def _update(
    found: Metrics, output: Tensor, target: Tensor, references: Sequence[InstanceReference] | None
) -> None:
    if references is not None:
        cast(ReferenceMetrics, found).update(output, target, references)
    else:
        found.update(output, target.to(output.device, non_blocking=True))


def _references(
    batch: Batch, task: Task, rows: Sequence[int] | None = None
) -> Sequence[InstanceReference] | None:
    """What the data set gives for scoring the task, of all of a batch or of some rows; none where the task takes none."""
    found = batch.get("references", {}).get(task.target) if task.scores_references else None
    return found if found is None or rows is None else [found[row] for row in rows]


def torch_runner(model: nn.Module, device: torch.device | str = "cpu") -> ModuleRun:
    """`model`, which must be on `device`, for `evaluate`: in eval mode and without gradients.

    Each call leaves every submodule in the mode in which it found it.
    """
    return ModuleRun(model, device)


@dataclass
class ModuleRun:
    """A module to evaluate: a call runs it on a batch, and `held` keeps it in eval mode over many calls.

    Switching for every batch would drop what layers keep for evaluation, such as a contracted weight.
    """

    model: nn.Module
    device: torch.device | str
    _is_held: bool = False

    def __call__(self, image: Images) -> Mapping[str, Tensor]:
        with nullcontext() if self._is_held else evaluating(self.model), torch.no_grad():
            outputs: Mapping[str, Tensor] = self.model(*parts(to_device(image, self.device)))
        return outputs

    @contextmanager
    def held(self) -> Iterator[None]:
        """Eval mode for a while, as `evaluating`."""
        if self._is_held:
            yield
            return
        with evaluating(self.model):
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards each submodule has its own mode again, such as a frozen batch norm."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # for modules that act on the change
        for module, training in modes:
            module.training = training


def array_runner(runner: Runner, names: Sequence[str] = ()) -> Run:
    """An opened model for `evaluate`, with one image input, or with those of these names in this order.

    A model of fixed batch size is fed in chunks of it, the last one filled up.
    """
    found = runner.input_names
    names = tuple(names) or tuple(found)[:1]
    if set(names) != set(found):
        wanted = "one image" if len(names) == 1 else ", ".join(names)
        raise ArtifactError(
            f"the model takes {len(found)} inputs ({', '.join(found)}), expected {wanted}",
            "export it again with `compactmtl export RUN --target NAME`",
        )

    def run(image: Images) -> Mapping[str, Tensor]:
        arrays = [one.numpy(force=True) for one in parts(image)]
        outputs = run_batched(runner, dict(zip(names, arrays, strict=True)))
        return {output: torch.from_numpy(array) for output, array in outputs.items()}

    return run


def in_batches(run: Run, size: int) -> Run:
    """`run` fed with at most `size` images at a time, whatever batch it is given."""

    def chunked(image: Images) -> Mapping[str, Tensor]:
        chunks = [run(between(image, start, start + size)) for start in range(0, count(image), size)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    return chunked


def _check_shape(task: Task, output: Tensor, image: Images) -> None:
    size = tuple(-(-side // task.stride) for side in size_of(image)) if task.dense else ()
    expected = (count(image), task.channels, *size)
    if tuple(output.shape) != expected:
        raise ArtifactError(
            f"output {task.name!r} has shape {tuple(output.shape)}, expected {expected}",
            "evaluate the model at the size and with the tasks that it was trained with",
        )
