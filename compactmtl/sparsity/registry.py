"""From the name of a penalty to its class: one file of `sparsity/penalties`, or a class of the user's own."""

from __future__ import annotations

import inspect

from compactmtl.config import trust
from compactmtl.config.registry import class_in, file_names
from compactmtl.config.schema import Frozen
from compactmtl.config.sparsity import SparsityConfig
from compactmtl.config.validate import validate_options
from compactmtl.config.words import key
from compactmtl.errors import ConfigError
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.penalty import Penalty

KEY = "sparsity.penalty"
FOLDER = "sparsity/penalties"


def penalty_names() -> tuple[str, ...]:
    """Every penalty of the package, in alphabetical order."""
    return file_names(FOLDER)


def penalty_class(name: str) -> type[Penalty]:
    """The class of a penalty: a name of `penalty_names`, or `package.module:Class`.

    Raises UntrustedError for a class of the user's own without the user's word (see compactmtl.config.trust), and
    ConfigError where there is no such penalty, its module cannot be imported or the class is not a whole penalty.
    """
    if trust.is_class_name(name):
        listed = trust.those(_is_penalty)
        return _checked(trust.import_class(name, key(KEY), listed, "penalty classes"), name)
    return class_in(FOLDER, name, _is_penalty, key(KEY), "penalty")


def penalty_options(config: SparsityConfig) -> Frozen:
    """The recipe's options of its penalty, checked. Raises as `penalty_class`, and ConfigError naming an option."""
    options = penalty_class(config.penalty).Options
    return validate_options(options, config.options_of_penalty, f"{KEY}_options")


def build_penalty(config: SparsityConfig, groups: ChannelGroups) -> Penalty:
    """The recipe's penalty on `groups`; raises as `penalty_options`."""
    options = penalty_options(config)
    given = {name: getattr(options, name) for name in type(options).model_fields}
    return penalty_class(config.penalty)(groups, config.strength or 0.0, **given)


def _is_penalty(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Penalty) and not inspect.isabstract(value)


def _checked(value: object, name: str) -> type[Penalty]:
    mend = "derive it from compactmtl.sparsity.Penalty; see docs/sparsity.md for what a penalty class has"
    if not (inspect.isclass(value) and issubclass(value, Penalty)):
        raise ConfigError(f"{key(KEY)}: {name} is not a penalty class", mend)
    if inspect.isabstract(value):
        raise ConfigError(f"{key(KEY)}: {name} lacks {', '.join(sorted(value.__abstractmethods__))}", mend)
    if not (inspect.isclass(value.Options) and issubclass(value.Options, Frozen)):
        raise ConfigError(
            f"{key(KEY)}: {name}.Options does not refuse unknown keys",
            "derive it from compactmtl.config.recipe.Frozen, a pydantic model",
        )
    return value
