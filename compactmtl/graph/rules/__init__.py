"""Rules by operator family: how channel coordinates, constants and uses pass through each operator.

Every module here that has a `RULES`, operator -> rule, takes part: a new family is one new file.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules

from compactmtl.graph.rule import Rule
from compactmtl.graph.rules.fallback import Fallback


def collect(folders: Iterable[str]) -> dict[str, Rule]:
    """The rules of all modules of this package that lie in `folders`. Raises ValueError where two name one operator."""
    rules: dict[str, Rule] = {}
    owners: dict[str, str] = {}
    for module in sorted(info.name for info in iter_modules(folders)):
        own: dict[str, Rule] = getattr(import_module(f"{__name__}.{module}"), "RULES", {})
        for operator in own.keys() & rules.keys():
            raise ValueError(f"{module} and {owners[operator]} both have a rule for {operator}")
        rules |= own
        owners |= dict.fromkeys(own, module)
    return rules


RULES: dict[str, Rule] = collect(__path__)
FALLBACK: Rule = Fallback()
