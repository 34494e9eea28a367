"""Functions and classes of the user's own that build a network or a part of it: imported, checked and called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from compactmtl.config import trust
from compactmtl.config.lookup import close_names
from compactmtl.errors import ConfigError
from compactmtl.models.listing import networks_of


def construct(
    name: str, key: str, options_key: str, options: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module that the function or class `package.module:name` gives for the keyword arguments `options` and `given`.

    Args:
        key: where `name` stands in the recipe, and `options_key` where the options do, for messages; empty where nothing
            gives options.
        given: further arguments, which compactmtl gives.

    Raises:
        UntrustedError: without the user's word for the code (see compactmtl.config.trust).
        ConfigError: where it cannot be imported, does not take the arguments, fails, or gives anything but a module.
    """
    build = constructor(name, key, options_key, options, given)
    with trust.own_errors(f"{key}: {name} fails", f"mend it, or {options_key}" if options_key else "mend it"):
        module = build(**(given or {}), **options)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{key}: {name} returned a {type(module).__name__}", "name what returns an nn.Module"
        )
    return module


def constructor(
    name: str, key: str, options_key: str, options: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """What `construct` calls, imported and with its arguments checked. Raises as that does; nothing is built."""
    found = trust.import_class(name, key, networks_of, "networks")
    if isinstance(found, nn.Module):
        raise ConfigError(
            f"{key}: {name} is a network that is built already",
            "name a function or class that builds a new one at every call",
        )
    if not callable(found):
        raise ConfigError(
            f"{key}: {name} is a {type(found).__name__}", "name a function or class that returns an nn.Module"
        )
    build: Callable[..., Any] = found
    _check_arguments(name, key, options_key, build, options, given or {})
    return build


def _check_arguments(
    name: str,
    key: str,
    options_key: str,
    build: Callable[..., Any],
    options: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # of a class in C: what it does not take, it says when it is called
        return
    if doubled := next((one for one in options if one in given), None):
        raise ConfigError(f"{options_key}.{doubled}: compactmtl gives this argument itself", "leave it out")
    parameters = signature.parameters.values()
    known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters)
    for one in given:
        if one not in known and not open_ended:
            raise ConfigError(
                f"{key}: {name} does not take the argument {one}",
                f"it is called with {', '.join(f'{argument}=…' for argument in given)}",
            )
    for option in options:
        if option not in known and not open_ended:
            near = close_names(option, known)
            own = [argument for argument in known if argument not in given]
            raise ConfigError(
                f"{options_key}.{option}: {name} has no such argument",
                f"did you mean {near[0]}?" if near else f"its arguments are {', '.join(own) or 'none'}",
            )
    try:
        signature.bind(**given, **options)
    except TypeError as error:
        raise ConfigError(
            f"{key}: {name}: {error}",
            f"give it a value in {options_key}" if options_key else "name one that needs no arguments",
        ) from None
