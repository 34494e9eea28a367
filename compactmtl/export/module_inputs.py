"""What a user's module takes: its example at the target's batch size, calibration batches, inputs to compare on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from compactmtl.backends.torch.runner import named_outputs
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, CompactError, ConfigError
from compactmtl.export.onnx import forward_names, tensor_names
from compactmtl.export.onnx_file import OnnxModel
from compactmtl.export.precision.ranges import Feed
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import Arguments, as_arguments, copied, map_tensors, tensors_in

COMPARED = 8  # real samples on which outputs are compared, as of a run
REPEATABLE = 1e-5  # of the largest value: sums in another order differ by 1e-6, dropout by far more


def argument_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of a model's arguments: of a file its inputs, else the parameters of forward."""
    return model.input_names if isinstance(model, OnnxModel) else forward_names(model, count)


def names_of_tensors(model: nn.Module, arguments: Arguments) -> tuple[str, ...]:
    """Names of the tensors in a model's arguments."""
    return model.input_names if isinstance(model, OnnxModel) else tensor_names(model, arguments)


def checked_outputs(
    model: nn.Module, arguments: Arguments, names: Sequence[str] | None, who: str = "the model"
) -> tuple[Any, dict[str, Tensor]]:
    """The outputs of a module on its example: as it gives them, and by name on the CPU; the module is left as it was.

    Raises ConfigError where it is in training mode, lies on several devices or on another one than the example, and
    ArtifactError where it fails, gives no tensors, values that aren't finite, or others in a second run.
    """
    _check_mode(model, who)
    _check_devices(model, arguments, who)
    try:
        with borrowed(model):  # one context for both runs: it puts the random generators back at its end
            given = model(*copied(arguments))
            first, second = (
                {name: one.cpu() for name, one in named_outputs(outputs, names).items()}
                for outputs in (given, model(*copied(arguments)))
            )
    except CompactError:
        raise
    except Exception as error:  # whatever the module's code raises
        raise ArtifactError(
            f"{who} fails on the example inputs: {type(error).__name__}: {_first_line(error)}",
            "give what model(*example_inputs) takes, in one of its forms: a tensor, a tuple of arguments, a dict of keywords",
        ) from error
    for name, one in first.items():
        if not torch.isfinite(one).all():
            raise ArtifactError(
                f"{who}: output '{name}' holds NaN or infinity on the example inputs",
                "give an example as the model sees it in use, and check the weights",
            )
        _check_repeatable(name, one, second[name], who)
    return given, first


def _check_mode(model: nn.Module, who: str) -> None:
    training = [name for name, module in model.named_modules() if module.training]
    if not training:
        return
    if model.training:
        raise ConfigError(
            f"{who} is in training mode, and is deployed as it is in eval mode",
            "call model.eval() first, so that what you measure is what is exported",
        )
    raise ConfigError(
        f"{who} is in eval mode, but {training[0]} in it is in training mode",
        f"call model.eval(), or model.get_submodule({training[0]!r}).eval(): in use nothing trains",
    )


def _check_devices(model: nn.Module, arguments: Arguments, who: str) -> None:
    tensors = {name: one.device for name, one in (*model.named_parameters(), *model.named_buffers())}
    devices = dict.fromkeys(tensors.values())
    if len(devices) > 1:
        shown = {device: next(name for name, one in tensors.items() if one == device) for device in devices}
        raise ConfigError(
            f"{who} lies on several devices: " + ", ".join(f"{name} on {one}" for one, name in shown.items()),
            "move it to one: model.to(device)",
        )
    home = next(iter(devices), torch.device("cpu"))
    for name, tensor in zip(names_of_tensors(model, arguments), tensors_in(arguments), strict=True):
        if tensor.device != home:
            raise ConfigError(
                f"{who} is on {home}, its example input '{name}' on {tensor.device}",
                f"move the example to the model: example.to('{home}')",
            )


def _check_repeatable(name: str, first: Tensor, second: Tensor, who: str) -> None:
    same = first.shape == second.shape
    if same and first.numel():
        one, other = first.double(), second.double()
        same = float((one - other).abs().max()) <= REPEATABLE * float(one.abs().max())
    if not same:
        raise ArtifactError(
            f"{who}: output '{name}' differs from run to run on the same inputs: no file can be compared with it",
            "find what draws random numbers in eval mode, such as functional.dropout without training=self.training",
        )


def has_batches(arguments: Arguments, outputs: Mapping[str, Tensor]) -> bool:
    """Whether dimension 0 of all inputs and outputs counts samples: it has the same size in each."""
    sizes = {len(one) if one.dim() else None for one in (*tensors_in(arguments), *outputs.values())}
    return len(sizes) == 1 and None not in sizes


def resized(arguments: Arguments, batch: int) -> Arguments:
    """Arguments with `batch` samples along dimension 0: the first ones, repeated from the start where there are fewer."""
    return map_tensors(lambda one: _repeated(one, batch), arguments)


def _repeated(samples: Tensor, count: int) -> Tensor:
    return samples.repeat(-(-count // len(samples)), *[1] * (samples.dim() - 1))[:count]


def calibration_batches(
    model: nn.Module, given: Iterable[Any] | None, example: Arguments, samples: int, batch: int | None
) -> list[Arguments]:
    """At least `samples` samples of a user's batches as arguments on the CPU, in batches of `batch`; as given where it is None.

    A batch is what the module takes: a tensor, positional arguments, or a mapping that holds its parameters. It may
    hold more, such as targets behind the inputs. No more of them are read than are needed; a last batch that is short
    is filled up from the first samples. Raises ConfigError where there are none, or one does not fit the example.
    """
    if given is None or samples < 1:
        return []
    read: list[Arguments] = []
    found = 0
    for number, item in enumerate(given):
        read.append(_fitting(model, item, example, f"calibration batch {number}", batch is not None))
        found += len(tensors_in(read[-1])[0]) if batch is not None else 1
        if found >= samples:
            break
    if not read:
        raise ConfigError(
            "calibration gives no batch",
            "give a loader or a list of batches; a generator is empty once it was read",
        )
    if batch is None:
        return read
    count = min(found, samples)
    count = -(-count // batch) * batch
    columns = [torch.cat(parts) for parts in zip(*map(tensors_in, read), strict=True)]
    columns = [_repeated(one, count) for one in columns]
    return [
        with_tensors(example, [one[start : start + batch] for one in columns])
        for start in range(0, count, batch)
    ]


def _fitting(model: nn.Module, item: Any, example: Arguments, where: str, batched: bool) -> Arguments:
    """One batch as arguments on the CPU. Raises ConfigError where it is none that the module takes."""
    names = argument_names(model, len(example))
    if isinstance(item, Tensor):
        arguments: tuple[Any, ...] = (item,)
    elif isinstance(item, Mapping):
        wanted = [name for name, one in zip(names, example, strict=True) if tensors_in([one])]
        if lacking := [name for name in wanted if name not in item]:
            raise ConfigError(
                f"{where} has {', '.join(map(str, item)) or 'no keys'}, and not {', '.join(lacking)},"
                " which the model's forward takes",
                f"rename them: calibration=({{{lacking[0]!r}: batch['…']}} for batch in loader)",
            )
        arguments = tuple(item.get(name, one) for name, one in zip(names, example, strict=True))
    elif isinstance(item, list | tuple):
        arguments = tuple(item)
    else:
        raise ConfigError(
            f"{where} is a {type(item).__name__}",
            "give a tensor, a tuple of the model's arguments, or a dict of them, as torch.utils.data.DataLoader does",
        )
    if len(arguments) < len(example):
        raise ConfigError(
            f"{where} holds {len(arguments)} values, and the model takes {len(example)}: {', '.join(names)}",
            "give a tuple of all of them",
        )
    arguments = arguments[: len(example)]
    if tree_flatten(list(arguments))[1] != tree_flatten(list(example))[1]:
        raise ConfigError(
            f"{where} is nested in another way than the example inputs",
            "give each argument as in the example: a tensor for a tensor, a list of as many for a list",
        )
    _check_tensors(model, arguments, example, where, batched)
    return map_tensors(lambda one: one.detach().cpu(), arguments)


def _check_tensors(
    model: nn.Module, arguments: Arguments, example: Arguments, where: str, batched: bool
) -> None:
    names, start = names_of_tensors(model, example), 1 if batched else 0
    found = tensors_in(arguments)
    if len(found) != len(names):
        raise ConfigError(
            f"{where} holds {len(found)} tensors for {len(names)} inputs: {', '.join(names)}",
            "give a tensor for each",
        )
    for name, one, want in zip(names, found, tensors_in(example), strict=True):
        if one.dim() != want.dim() or one.shape[start:] != want.shape[start:]:
            raise ConfigError(
                f"{where}: input '{name}' has shape {tuple(one.shape)}, the example's has {tuple(want.shape)}",
                "prepare calibration data as the example: same size, batch first",
            )
        if one.dtype != want.dtype:
            raise ConfigError(
                f"{where}: input '{name}' is {one.dtype}, the example's is {want.dtype}",
                "prepare calibration data as the example; pictures of 0 to 255 have to be normalized",
            )
    if batched and len({len(one) for one in found}) != 1:
        raise ConfigError(
            f"{where}: its tensors hold {sorted({len(one) for one in found})} samples",
            "give each input as many samples",
        )


def with_tensors(example: Arguments, tensors: Sequence[Tensor]) -> Arguments:
    """The example's arguments with other tensors, in their order."""
    given = iter(tensors)
    return map_tensors(lambda _: next(given), example)


def cases(
    model: nn.Module,
    example: Arguments,
    calibration: Sequence[Arguments],
    target: Target,
    batched: bool,
) -> list[Arguments]:
    """Arguments on which a file is compared with its module: the example, real samples, noise; several sizes where free.

    Noise has the example's mean and deviation; whole numbers stay as they are. It is left out where the module itself
    gives values on it that aren't finite.
    """
    real = list(calibration)
    if not batched:
        return [example, *real[:COMPARED], *_noise(model, example)]
    batch = target.latency.batch
    whole = [resized(example, max(batch, -(-len(tensors_in(example)[0]) // batch) * batch)), *real]
    samples = [torch.cat(parts) for parts in zip(*map(tensors_in, whole), strict=True)]
    most = max(COMPARED // batch, 1) * batch

    def part(start: int, stop: int) -> Arguments:
        return with_tensors(example, [one[start:stop] for one in samples])

    chosen = [part(start, start + batch) for start in range(0, min(most, len(samples[0])), batch)]
    chosen += _noise(model, resized(example, batch))
    if target.onnx.dynamic_batch:
        chosen += [resized(part(0, 1), 1), resized(part(0, 3), 3)]
    if target.onnx.dynamic_size:
        chosen.append(map_tensors(lambda one: torch.cat([one] * 2, dim=3), chosen[0]))
    return chosen


def _noise(model: nn.Module, arguments: Arguments) -> list[Arguments]:
    generator = torch.Generator().manual_seed(0)

    def draw(one: Tensor) -> Tensor:
        if not one.is_floating_point():
            return one
        noise = torch.randn(one.shape, generator=generator, dtype=torch.float64)
        spread = float(one.double().std()) if one.numel() > 1 else 0.0
        scaled = noise * spread + float(one.double().mean()) if spread > 0 else noise
        return scaled.to(one.dtype)

    drawn = map_tensors(draw, map_tensors(lambda one: one.cpu(), arguments))
    home = next((one.device for one in model.parameters()), torch.device("cpu"))
    try:
        with borrowed(model):
            outputs = named_outputs(model(*map_tensors(lambda one: one.to(home), copied(drawn))))
    except Exception:  # a module may refuse what isn't of its data; the real samples are compared
        return []
    return [drawn] if all(bool(torch.isfinite(one).all()) for one in outputs.values()) else []


def feed_of(arguments: Arguments, names: Sequence[str]) -> Feed:
    """Arguments as arrays by input name."""
    return dict(zip(names, (one.numpy(force=True) for one in tensors_in(arguments)), strict=True))


def arguments_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """What a call of the module gives as positional arguments."""
    if not kwargs:
        return as_arguments(model, args)
    named = dict(zip(argument_names(model, len(args))[: len(args)], args, strict=True))
    return positional(model, {**named, **kwargs})


def positional(model: nn.Module, given: Any) -> Arguments:
    """Example inputs as positional arguments. Raises SurgeryError, and ConfigError where a file has no such input."""
    if not (isinstance(model, OnnxModel) and isinstance(given, Mapping)):
        return as_arguments(model, given)
    if set(given) != set(model.input_names):
        raise ConfigError(
            f"{model.path} takes {', '.join(model.input_names)}, found {', '.join(map(str, given))}",
            "name every input as the file does",
        )
    return tuple(given[name] for name in model.input_names)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
