"""A balancing method is one class in one file, found by the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.balancing import NAMES, Balancer
from compactmtl.balancing.registry import balancer_class
from compactmtl.config.balancing import BalancingConfig
from compactmtl.config.validate import validate
from compactmtl.config.yaml import read_yaml
from compactmtl.errors import ConfigError


@pytest.mark.parametrize("name", NAMES)
def test_every_file_holds_the_class_of_its_name(name: str) -> None:
    kind = balancer_class(name)
    assert issubclass(kind, Balancer)
    assert kind.__module__ == f"compactmtl.balancing.methods.{name}"
    assert kind.Options().model_dump() is not None  # every option has a default


def test_an_unknown_name_is_refused_where_the_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "balancing.yaml"
    path.write_text("name: upgrads\n")
    with pytest.raises(ConfigError, match=r"`name`: expected one of aligned_mtl, .*upgrads") as caught:
        validate(BalancingConfig, read_yaml(path), "balancing")
    assert caught.value.hint.startswith("did you mean upgrad")
    with pytest.raises(ConfigError, match="no method 'upgrads'"):
        balancer_class("upgrads")
