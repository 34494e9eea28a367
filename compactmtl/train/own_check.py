"""Whether a network of the user's own keeps the rules that training, surgery and export rest on; each fault with its mend.

It runs on random images. Nothing of the network or of the random generators changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compactmtl.config.recipe import DataConfig
from compactmtl.config.trust import raised_at
from compactmtl.data.inputs import random_inputs, size_of
from compactmtl.errors import CompactError, ConfigError, machine_fault
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.copies import copy_model
from compactmtl.models.own import KEY, OwnModel
from compactmtl.tasks import Task
from compactmtl.train.faults import ONE_VALUE

Inputs = tuple[Tensor, ...]
BATCH = 2
SAME = 1e-4  # of the largest output: two networks of one function whose kernels sum in another order


def check_own(
    model: OwnModel, tasks: Mapping[str, Task], data: DataConfig, rebuild: Callable[[], nn.Module]
) -> None:
    """Raise ConfigError for the first rule that the network breaks.

    Args:
        model: the network, on the device that it trains on.
        data: the recipe's, for the size of the images or inputs.
        rebuild: builds the network anew, as a run's folder will have to.
    """
    device = _check_devices(model)
    generator = torch.Generator().manual_seed(0)
    image, other = (tuple(one.to(device) for one in random_inputs(data, BATCH, generator)) for _ in range(2))
    with borrowed(model, evaluate=False), torch.enable_grad():
        copied = copy_model(model)
        _check_outputs(copied.train(), tasks, image, " in training mode")
        outputs = _check_outputs(copied.eval(), tasks, image, "")
        _check_memory(copied, outputs)
        _check_trained(copied, outputs)
        _check_repeats(copied, image)
        _check_read(copied, image, other)
        _check_rebuilt(model, rebuild, image, device)


def _check_devices(model: OwnModel) -> torch.device:
    """The one device of the network. Raises ConfigError for a tensor that `.to(device)` has not reached."""
    first = next(model.parameters(), None)
    if first is None:
        raise ConfigError(
            f"{KEY}: the network has no parameters: there is nothing to train or to shrink",
            "build it of modules that are its attributes, in nn.ModuleList or nn.ModuleDict where there are several",
        )
    for name, tensor in _plain_tensors(model):
        if tensor.device != first.device:
            raise ConfigError(
                f"{KEY}: {name} is a plain tensor on {tensor.device}, the network on {first.device}",
                f"keep it with self.register_buffer({name.rpartition('.')[2]!r}, tensor): it then moves with the network",
            )
    return first.device


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are attributes but neither parameters nor buffers: no checkpoint holds them."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}", value


def _run(model: nn.Module, image: Inputs, when: str) -> dict[str, Tensor]:
    try:
        return model(*image)  # type: ignore[no-any-return]
    except CompactError:
        raise
    except Exception as error:  # whatever the user's code does wrong is reported as its own error
        if machine_fault(error) is not None or str(error).startswith(
            ONE_VALUE
        ):  # explained where training meets it
            raise
        raise ConfigError(
            f"{KEY}: the forward of the network fails{when} on {_shown_inputs(model, image)}: "
            f"{raised_at(error)}{type(error).__name__}: {error}",
            f"mend the forward, which is given {_given(model)} as data.size says, in batches of any size",
        ) from error


def _shown_inputs(model: nn.Module, image: Inputs) -> str:
    """Such as "2 images of (3, 32, 32)", or "2 samples of rgb (3, 32, 32), depth (1, 32, 32)"."""
    names = model.input_names if isinstance(model, OwnModel) else ()
    if not names:
        return f"{len(image[0])} images of {tuple(image[0].shape[1:])}"
    shapes = ", ".join(f"{name} {tuple(one.shape[1:])}" for name, one in zip(names, image, strict=True))
    return f"{len(image[0])} samples of {shapes}"


def _given(model: nn.Module) -> str:
    names = model.input_names if isinstance(model, OwnModel) else ()
    return f"{', '.join(names)} by name" if names else "images (B, C, H, W)"


def _check_outputs(model: OwnModel, tasks: Mapping[str, Task], image: Inputs, when: str) -> dict[str, Tensor]:
    """The outputs, each of the shape that its task reads."""
    outputs = _run(model, image, when)
    for name, task in tasks.items():
        output = outputs[name]
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"{KEY}: output {name!r} is a {type(output).__name__}{when}", "give one tensor a task"
            )
        if output.device != image[0].device:
            raise ConfigError(
                f"{KEY}: output {name!r} is on {output.device}{when}, the images are on {image[0].device}",
                "let the forward leave tensors on the device of the images",
            )
        if not output.is_floating_point():
            raise ConfigError(
                f"{KEY}: output {name!r} is of {str(output.dtype).removeprefix('torch.')}{when}",
                "give raw outputs, such as logits: the task decodes them itself",
            )
        sides = tuple(-(-side // task.stride) for side in size_of(image)) if task.dense else ()
        expected = (BATCH, task.channels, *sides)
        if tuple(output.shape) != expected:
            raise ConfigError(
                f"{KEY}: output {name!r} has the shape {tuple(output.shape)}{when}; a {task.kind} task with "
                f"{task.channels} channels reads {expected} of {BATCH} images",
                _shape_mend(output, expected),
            )
    return outputs


def _shape_mend(output: Tensor, expected: tuple[int, ...]) -> str:
    given = tuple(output.shape)
    if len(given) == len(expected) == 4 and given[:2] == expected[:2]:
        return "bring it to the images' size, as with F.interpolate(output, size=image.shape[-2:])"
    if len(expected) == 2 and len(given) == 4 and given[:2] == expected[:2]:
        return "average the map, as with output.mean((2, 3))"
    if given[:1] != expected[:1]:
        return "keep the batch as the first dimension, whatever its size"
    if len(given) == len(expected):
        return "give the last layer as many channels; the data set and tasks.*.kind decide how many that are"
    if len(given) == 1:
        return "keep the channel as the second dimension, as with output[:, None]"
    return "give (batch, channels) for one vector an image and (batch, channels, H, W) for a map"


def _check_memory(model: OwnModel, outputs: Mapping[str, Tensor]) -> None:
    """No output is a parameter or a buffer of the network, or a view of one."""
    own = {
        tensor.untyped_storage().data_ptr(): name
        for name, tensor in (*model.named_parameters(), *model.named_buffers(), *_plain_tensors(model))
    }
    for name, output in outputs.items():
        held = own.get(output.untyped_storage().data_ptr())
        if held is not None:
            raise ConfigError(
                f"{KEY}: output {name!r} is {held} itself, a tensor that the network keeps",
                "give what the forward computes of the images; a copy where it must be this (tensor.clone())",
            )


def _check_trained(model: OwnModel, outputs: Mapping[str, Tensor]) -> None:
    """Every output depends on a parameter that trains."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    if not parameters:
        raise ConfigError(
            f"{KEY}: no parameter of the network trains: requires_grad is False everywhere",
            "let the factory leave requires_grad on for what is to be trained",
        )
    for name, output in outputs.items():
        reached = (
            torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
            if output.requires_grad
            else ()
        )
        if all(gradient is None for gradient in reached):
            raise ConfigError(
                f"{KEY}: output {name!r} depends on no parameter that trains: its loss has no gradient",
                "leave out detach() and torch.no_grad() on its way, or unfreeze its layers",
            )


def _check_repeats(model: OwnModel, image: Inputs) -> None:
    """In eval mode the same images give the same outputs."""
    drawing = _Drawing()
    with torch.no_grad(), _calls(model, drawing), drawing:
        first = _run(model, image, "")
        torch.manual_seed(1)
        second = _run(model, image, "")
    for name, output in first.items():
        if torch.equal(output, second[name]) or bool((output.isnan() & second[name].isnan()).all()):
            continue
        if not drawing.found:
            raise ConfigError(
                f"{KEY}: output {name!r} is another one for the same images in eval mode",
                "let the forward depend on images and weights alone: no counter, clock or random number",
            )
        where, operator = drawing.found[0]
        still = where in _in_training(model)
        reason = "stays in training mode after .eval()" if still else "draws random numbers in eval mode"
        raise ConfigError(
            f"{KEY}: {where} {reason} ({operator}), so that the same images give other outputs",
            "let train() and eval() reach it: call super().train(mode), and make it a submodule"
            if still
            else "draw only while self.training: F.dropout(x, p, self.training)",
        )


def _in_training(model: nn.Module) -> set[str]:
    return {_shown(name) for name, module in model.named_modules() if module.training}


class _Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operators that draw random numbers, with the module that runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[str] = []
        self.found: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append((self.stack[-1] if self.stack else "the network", str(func)))
        return func(*args, **(kwargs or {}))


@contextmanager
def _calls(model: nn.Module, drawing: _Drawing) -> Iterator[None]:
    """Keeps `drawing.stack`: the modules that run, the innermost last."""
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, shown: str = _shown(name)) -> None:
            drawing.stack.append(shown)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            drawing.stack.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shown(name: str) -> str:
    """A module's name as its author knows it."""
    return name.removeprefix("network").removeprefix(".") or "the network"


def _check_read(model: OwnModel, image: Inputs, other: Inputs) -> None:
    """Every output depends on the images, also where a layer starts at zero."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(0.1 * noise)
        one, two = _run(model, image, ""), _run(model, other, "")
    for name, output in one.items():
        if torch.equal(output, two[name]):
            raise ConfigError(
                f"{KEY}: output {name!r} is the same whatever the images are",
                "compute it from the argument of forward",
            )
    for number, name in enumerate(model.input_names if len(image) > 1 else ()):
        changed = tuple(
            new if place == number else old for place, (old, new) in enumerate(zip(image, other, strict=True))
        )
        with torch.no_grad():
            three = _run(model, changed, "")
        if all(torch.equal(output, three[task]) for task, output in one.items()):
            raise ConfigError(
                f"{KEY}: no output depends on the input {name!r} of data.inputs",
                "let the forward read it, or take it out of data.inputs",
            )


def _check_rebuilt(
    model: OwnModel, rebuild: Callable[[], nn.Module], image: Inputs, device: torch.device
) -> None:
    """The network that is built anew, with the same weights, is the same function: a run's folder holds weights alone."""
    fresh = rebuild()
    shared = {id(one) for one in fresh.parameters()} & {id(one) for one in model.parameters()}
    if shared:
        raise ConfigError(
            f"{KEY}: it returns the same network at every call",
            "build a new one at every call: a run is compared with copies, and loaded again",
        )
    try:
        fresh.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"{KEY}: it builds another network at every call: {str(error).splitlines()[-1].strip()}",
            "let names and shapes of its weights depend on model.options alone",
        ) from None
    fresh = fresh.to(device).eval()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            ours, theirs = _run(model, image, ""), _run(fresh, image, "")
    finally:
        for module, mode in modes:
            module.training = mode
    for name, output in ours.items():
        apart = (output - theirs[name]).abs().max() / output.abs().max().clamp_min(1e-12)
        if not apart <= SAME:
            kept = ", ".join(_shown(path) for path, _ in _plain_tensors(model))
            raise ConfigError(
                f"{KEY}: built anew with the same weights, the network gives other outputs {name!r}"
                + (f"; {kept} is in no state_dict" if kept else ""),
                "keep what the forward needs in parameters and buffers (self.register_buffer), or make it the same at "
                "every call: a run is loaded from its weights alone",
            )
