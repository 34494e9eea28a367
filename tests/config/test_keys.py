import re
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticKnownError

from compactmtl.backends.targets import target_schema
from compactmtl.config.keys import Key, keys
from compactmtl.config.merge import apply_overrides
from compactmtl.config.overparam import OverparamConfig
from compactmtl.config.precision import Int8Config
from compactmtl.config.recipe import Recipe, TrainConfig
from compactmtl.config.schema import Frozen, Positive, Scalar
from compactmtl.config.sweep import SweepConfig
from compactmtl.config.target import LatencyConfig, OnnxConfig
from compactmtl.config.validate import validate
from compactmtl.config.yaml import Node, Place

SCHEMAS = (Recipe, target_schema(), SweepConfig)


def known(name: str) -> str:
    if name not in ("left", "right"):
        raise PydanticKnownError("literal_error", {"expected": "'left', 'right' or 'package.module:Class'"})
    return name


class Inner(Frozen):
    size: tuple[int, int] = Field((1, 2), description="Height and width.")
    rates: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, description="Rates.")


class Outer(Frozen):
    count: Annotated[int, Field(ge=1)] = Field(description="A count.")
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="A share.")
    rank: Literal["full"] | Annotated[int, Field(ge=1)] | Positive = Field("full", description="A rank.")
    inner: Inner = Field(Inner(size=(3, 4)), description="A section.")
    named: dict[str, Inner] = Field(default_factory=dict, description="Sections by name.")
    side: Annotated[str, AfterValidator(known)] = Field("left", description="A name that is checked.")
    options: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict, description="Options.")


def by_name(model: type[BaseModel]) -> dict[str, Key]:
    return {key.name: key for key in keys(model)}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_says_in_sentences_what_it_means(schema: type[BaseModel]) -> None:
    faults = [
        key.name
        for key in keys(schema)
        if not re.match(r"[A-Z`λ]|torch |timm", key.description) or not key.description.endswith(".")
    ]
    assert faults == []


def test_the_keys_of_the_recipe_reach_every_level() -> None:
    names = set(by_name(Recipe))
    assert {"seed", "train.optimizer.lr", "tasks.*.head.kind", "sparsity.selective.mac_reduction"} <= names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("count", "integer ≥ 1"),
        ("share", "number > 0 and ≤ 1 or null"),
        ("rank", "`full`, integer ≥ 1 or number > 0"),
        ("side", "`left`, `right` or `package.module:Class`"),
        ("inner", "section"),
        ("inner.size", "list of 2 integers"),
        ("named", "mapping of names to sections"),
        ("named.*.rates", "list of integers ≥ 1 or null"),
        ("options", "mapping of names to scalars or list of scalars"),
    ],
)
def test_types_are_told_in_words(name: str, words: str) -> None:
    assert by_name(Outer)[name].type == words


def test_names_that_can_be_given_are_listed() -> None:
    found = by_name(Outer)
    assert found["rank"].choices == ("full",)
    assert found["side"].choices == ("left", "right", "package.module:Class")
    assert found["count"].choices == ()


def test_a_required_key_has_no_default_and_a_section_shows_what_it_changes() -> None:
    found = by_name(Outer)
    assert found["count"].default is None
    assert found["inner"].default == "{size: [3, 4]}"
    assert found["inner.size"].default == "[1, 2]"
    assert [key.name for key in keys(Outer) if key.section] == ["inner", "named"]


@pytest.mark.parametrize("section", [TrainConfig, OverparamConfig, Int8Config, LatencyConfig, OnnxConfig])
def test_every_default_reads_back_as_itself(section: type[BaseModel]) -> None:
    off = tuple(f"{key.name}." for key in keys(section) if key.section and key.default == "null")
    shown = [key for key in keys(section) if not key.section and not key.name.startswith(off)]
    words = [f"{key.name}={key.default}" for key in shown]  # a key of a section that is off would turn it on
    assert len(words) > 4
    node = apply_overrides(Node({}, Place(None)), words)
    assert validate(section, node, "a section") == section()
