"""What a fit trains: the recipes of the dense and of the shrunk network, from a recipe or a module of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from compactmtl.artifacts.layout import BEST, CHECKPOINTS, WEIGHTS
from compactmtl.backends import load_target
from compactmtl.config import Resolved, trust
from compactmtl.config.load import resolve_layers
from compactmtl.config.lookup import find, name_of, names
from compactmtl.config.merge import apply_overrides, extended, read_extended
from compactmtl.config.paths import anchor
from compactmtl.config.sparsity import LIMITS, REDUCTIONS, ReductionConfig
from compactmtl.config.target import Target
from compactmtl.config.trust import is_class_name, split_name
from compactmtl.config.yaml import Node, Place, describe, flow, node_of
from compactmtl.errors import ConfigError
from compactmtl.models.listing import recipe_or_module

DEFAULT_TARGET = "onnxruntime-cpu"
# What a recipe without sparsity shrinks with. The whole model counts in a budget, so heads shrink too; the last 40 % of
# the steps train what is left.
SHRINKING = ("sparsity.scope=model", "sparsity.selective.start=0.1", "sparsity.selective.end=0.6")
# The dense network is plain, and trained without all that makes it another one.
DENSE = ("sparsity=null", "overparam=null")
# Of a module: its recipe as a mapping or a path, or a function that gives that.
RECIPE, FUNCTION = "RECIPE", "recipe"

Measure = Literal["latency-ms", "speedup", "macs-reduction", "parameters-reduction"]
_KEYS: Mapping[Measure, str] = {
    "latency-ms": "latency.ms",
    "speedup": "latency.speedup",
    "macs-reduction": "mac_reduction",
    "parameters-reduction": "parameter_reduction",
}
_FORMER = ("latency_reduction", "latency_table")  # a latency budget as recipes had it before `latency`


@dataclass(frozen=True)
class Budget:
    """What the deployed network may cost: milliseconds on the target, a speedup there, or the share of its MACs or
    parameters that is gone.
    """

    measure: Measure
    amount: float

    @property
    def slug(self) -> str:
        """The budget as a part of a folder's name."""
        amount = f"{self.amount:g}"
        return {
            "latency-ms": f"{amount}ms",
            "speedup": f"{amount}x",
            "macs-reduction": f"macs-{amount}",
            "parameters-reduction": f"parameters-{amount}",
        }[self.measure]


@dataclass(frozen=True)
class Road:
    """A fit before it is walked: its recipes, and where everything lies.

    `plain` is the shrunk network's recipe before the table and the dense weights are there: what is checked and measured
    first. `dense` is None where nothing dense is trained.
    """

    subject: str
    folder: Path  # of all fits of the subject
    name: str  # of the shrunk run in it
    target_name: str
    target: Target
    plain: Resolved
    shrunk: Resolved
    dense: Resolved | None

    @property
    def run(self) -> Path:
        """The folder of the shrunk run."""
        return self.folder / self.name

    @property
    def dense_run(self) -> Path:
        """The folder of the dense run."""
        return self.folder / "dense"

    @property
    def own_table(self) -> bool:
        """Whether the recipe names a latency table itself, such as one of another device."""
        section = None if self.plain.recipe.sparsity is None else self.plain.recipe.sparsity.target
        return section is not None and section.latency is not None and section.latency.table is not None

    @property
    def table(self) -> Path:
        """The latency table that the network is shrunk by, where it is measured here."""
        return self.folder / f"{self.name}.latency.json"

    @property
    def state(self) -> Path:
        """What the finished stages were made from."""
        return self.folder / f"{self.name}.fit.json"

    @property
    def reduction(self) -> ReductionConfig:
        """The section of the recipe that holds the budget."""
        assert self.shrunk.recipe.sparsity is not None
        section = self.shrunk.recipe.sparsity.target
        assert section is not None
        return section


def plan_road(
    subject: str,
    overrides: Sequence[str] = (),
    *,
    base: str | None = None,
    budget: Budget | None = None,
    target: str | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    dense: bool = True,
) -> Road:
    """The recipes of a fit.

    Args:
        subject: a recipe by name or path, or `package.module:build`, which gives the network.
        overrides: `key=value` words, laid over the recipe.
        base: recipe by name or path to which a module's network is given; by default the module's own `RECIPE`.
        budget: None: as the recipe says.
        target: by name or path. None: of the recipe's budget, else the recipe's first target.
        out: folder of runs.
        name: folder of the subject in it.
        dense: whether the dense network is trained first, and shrinking starts from its weights.

    Raises:
        ConfigError: for a subject without data, tasks or budget, and all that `resolve_recipe` refuses.
        UntrustedError: where a module's code may not be run.
    """
    node, title, path = _document(subject, base)
    words = list(overrides)
    if is_class_name(subject):
        words = [*_network(subject, node), *words]
    values = anchor("recipe", apply_overrides(node, words)).plain()
    _check_whole(subject, values)
    section, shrinking, dropped = _section(values)
    given = _target_of(values, section) if target is None else target
    words = [*shrinking, *words, *dropped, f"targets={flow([given])}"]
    words += _budget_words(values, section, budget, given)
    title = name or "-".join(title.split("/"))
    folder = Path(out) / title
    plain = resolve_layers(node, words, title, path)
    assert plain.recipe.sparsity is not None
    reduction = plain.recipe.sparsity.target
    assert reduction is not None
    stem = Path(given).stem
    road = Road(
        subject=subject,
        folder=folder,
        name=f"{stem}-{(budget or _budget_of(reduction)).slug}",
        target_name=stem,
        target=load_target(plain.recipe.targets[0]),
        plain=plain,
        shrunk=plain,
        dense=resolve_layers(node, [*words, *DENSE], title, path) if dense else None,
    )
    if reduction.latency is not None and not road.own_table:
        words.append(f"sparsity.{section}.latency.table={_here(road.table)}")
    if dense:
        weights = road.dense_run / CHECKPOINTS / BEST / WEIGHTS
        words.append(f"model.weights={_here(weights)}")
    return replace(road, shrunk=resolve_layers(node, words, title, path))


def _here(path: Path) -> str:
    return flow(str(path.absolute()))


def _document(subject: str, base: str | None) -> tuple[Node, str, Path]:
    """The recipe that a fit begins with, what the fit is called, and the recipe's file."""
    if not is_class_name(subject):
        if base is not None:
            raise ConfigError(
                f"--recipe {base}: {subject} is a recipe itself",
                f"extend it there, or fit {base} with key=value",
            )
        path = recipe_or_module(subject)
        return read_extended("recipe", path), name_of("recipe", path), path
    module_name, _ = split_name(subject, "the network to fit")
    module = trust.import_module(subject, "the network to fit")
    file = Path(module.__file__ or ".").resolve()
    if base is not None:
        path = find("recipe", base)
        return read_extended("recipe", path), module_name, path
    own = getattr(module, RECIPE, None)
    if own is None and callable(getattr(module, FUNCTION, None)):
        with trust.own_errors(f"{module_name}.{FUNCTION}() fails", "mend it, or name a recipe with --recipe"):
            own = module.recipe()
    if isinstance(own, str | Path):
        path = find("recipe", file.parent / own if str(own).endswith((".yaml", ".yml")) else own)
        return read_extended("recipe", path), module_name, path
    if own is not None and not isinstance(own, Mapping):
        raise ConfigError(
            f"{module_name}.{RECIPE} is a {type(own).__name__}",
            "let it be a mapping as a recipe's file has it, or the path of a recipe",
        )
    node = node_of(_plain(own or {}, f"{module_name}.{RECIPE}"), Place(file))
    return extended("recipe", node, file), module_name, file


def _plain(value: Any, where: str) -> Any:
    """What a module's recipe holds, as a file would hold it. Raises ConfigError, naming the key, for what no file can."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, where) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    what = f"{value}" if isinstance(value, float) else f"a {type(value).__name__}"
    raise ConfigError(
        f"{where} is {what}", "give text, finite numbers, lists and mappings, as a recipe's file has them"
    )


def _network(subject: str, node: Node) -> list[str]:
    """Words that put the module's network in the place of the recipe's."""
    values = node.plain()
    tasks = values.get("tasks") if isinstance(values, dict) else None
    heads = [
        f"tasks.{name}.head=null"
        for name, task in (tasks.items() if isinstance(tasks, dict) else ())
        if isinstance(task, dict) and task.get("head")
    ]
    return ["model.encoder={}", f"model.factory={subject}", *heads]


def _check_whole(subject: str, values: Any) -> None:
    """Raise ConfigError where nothing says what to train on."""
    data = values.get("data") if isinstance(values, dict) else None
    missing = [
        key
        for key, there in (
            ("data", isinstance(data, dict) and data.get("name")),
            ("tasks", isinstance(values, dict) and values.get("tasks")),
        )
        if not there
    ]
    if missing and is_class_name(subject):
        raise ConfigError(
            f"{subject}: nothing says {' and '.join(missing)}",
            "give them as key=value (data.name=folder data.root=… data.size=[224,224] tasks.age.kind=regression), "
            f"name a recipe with --recipe, or let the module have {RECIPE}",
        )


def _section(values: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The section of `sparsity` that takes the budget, words that make one where there is none, and those that drop a λ."""
    sparsity = _mapping(values, "sparsity")
    for section in REDUCTIONS:
        if _mapping(values, "sparsity", section):
            return section, (), ()
    if sparsity:
        # a λ alone has no budget to keep
        return "selective", SHRINKING[1:], ("sparsity.strength=null", "sparsity.schedule=null")
    return "selective", SHRINKING, ()


def _mapping(values: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The section under dotted keys; empty where there is none. Raises ConfigError for a value that is no section."""
    found: Any = values
    for depth, key in enumerate(keys, 1):
        found = found.get(key)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"`{'.'.join(keys[:depth])}`: expected a mapping or null, found {describe(found)}",
                "give it keys, or leave it out: the command's own budget makes the section",
            )
    return dict(found)


def _latency_of(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The recipe's latency budget, also of one in its former keys; empty where it has another or none."""
    own = _mapping(values, "sparsity", section)
    share, table = (own.get(key) for key in _FORMER)
    former = {} if share is None else {"reduction": share, "table": table}
    latency = former | dict(_mapping(values, "sparsity", section, "latency"))
    return {key: value for key, value in latency.items() if value is not None}


def _target_of(values: Mapping[str, Any], section: str) -> str:
    """The target of the recipe's budget or of the table that it names, else the recipe's first, else the CPU."""
    latency = _latency_of(values, section)
    if "target" in latency:
        return str(latency["target"])
    if (table := Path(str(latency.get("table", "")))).is_file():
        from compactmtl.sparsity import LatencyTable  # which takes seconds

        named = LatencyTable.load(table).target
        if named in names("target"):
            return named
    targets = values.get("targets")
    return str(targets[0]) if isinstance(targets, list) and targets else DEFAULT_TARGET


def _budget_words(values: Mapping[str, Any], section: str, budget: Budget | None, target: str) -> list[str]:
    """Words that put `budget` in the place of the recipe's own, and the target in a latency budget.

    A table that the recipe names stays, unless it is of another target.
    """
    at, own = f"sparsity.{section}", _mapping(values, "sparsity", section)
    given = [
        key
        for key in ("mac_reduction", "parameter_reduction", "latency", *_FORMER)
        if own.get(key) is not None
    ]
    latency = _latency_of(values, section)
    if budget is None:
        if not given:
            raise ConfigError(
                "no budget: neither the command nor the recipe says what the network may cost",
                "add --latency-ms 5, --speedup 2 or --macs-reduction 0.5",
            )
        if not latency:
            return []
    words = [f"{at}.{key}=null" for key in given]
    key = "latency" if budget is None else _KEYS[budget.measure]
    if not key.startswith("latency"):
        assert budget is not None
        return [*words, f"{at}.{key}={flow(budget.amount)}"]
    if budget is not None:
        latency = {key: value for key, value in latency.items() if key not in LIMITS}
        latency[key.partition(".")[2]] = budget.amount
    if "target" in latency and not _same_target(str(latency["target"]), target):
        latency.pop("table", None)
    return [*words, f"{at}.latency={flow(latency | {'target': target})}"]


def _same_target(one: str, other: str) -> bool:
    return one == other or find("target", one).resolve() == find("target", other).resolve()


def _budget_of(section: ReductionConfig) -> Budget:
    """The recipe's own budget, for the name of its folder."""
    if section.latency is None:
        return Budget(
            "macs-reduction" if section.measure == "macs" else "parameters-reduction", section.amount
        )
    if section.latency.ms is not None:
        return Budget("latency-ms", section.latency.ms)
    return Budget("speedup", 1 / section.latency.milliseconds(1.0))
