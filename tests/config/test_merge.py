from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.config.merge import apply_overrides, merge, read_extended
from compactmtl.config.yaml import Node, Place
from compactmtl.errors import ConfigError

keys = st.sampled_from("abc")
trees = st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=8)


# Trees in which a key always holds the same kind of thing: x and y a number, a and b a mapping.
shaped = st.recursive(
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 9), max_size=2),
    lambda inner: st.builds(
        dict.__or__,
        st.dictionaries(st.sampled_from("xy"), st.integers(0, 9), max_size=2),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    ),
    max_leaves=6,
)


def node(value: Any) -> Node:
    children = {key: node(child) for key, child in value.items()} if isinstance(value, dict) else value
    return Node(children, Place(None))


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")


@pytest.mark.slow
@given(trees)
def test_laying_a_tree_over_itself_changes_nothing(tree: Any) -> None:
    assert merge(node(tree), node(tree)).plain() == tree


@settings(max_examples=50)
@given(shaped, shaped, shaped)
def test_merging_is_associative(first: Any, second: Any, third: Any) -> None:
    one, two, three = node(first), node(second), node(third)
    assert merge(merge(one, two), three).plain() == merge(one, merge(two, three)).plain()


@settings(max_examples=50)
@given(st.dictionaries(keys, trees, max_size=3), st.dictionaries(keys, trees, max_size=3))
def test_every_leaf_of_the_upper_tree_holds(under: Any, over: Any) -> None:
    merged = merge(node(under), node(over)).plain()

    def holds(upper: Any, result: Any) -> bool:
        if isinstance(upper, dict) and upper:
            return all(holds(child, result[key]) for key, child in upper.items())
        return upper == {} or bool(upper == result)

    assert holds(over, merged)


def test_null_takes_away_a_mapping_and_replaces_a_scalar() -> None:
    under = node({"tasks": {"age": {"kind": "x"}, "sex": {"kind": "y"}}, "clip": 1.0})
    merged = merge(under, node({"tasks": {"age": None}, "clip": None}))
    assert merged.plain() == {"tasks": {"sex": {"kind": "y"}}, "clip": None}


@pytest.mark.parametrize("empty", ["{}", "null", "{ }"])
def test_an_empty_mapping_takes_the_place_of_an_inherited_one(empty: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        base="model: {options: {a: 1, b: [2]}, name: x}\n",
        child=f"extends: base.yaml\nmodel: {{options: {empty}}}\n",
    )
    in_file = read_extended("recipe", tmp_path / "child.yaml")
    on_line = apply_overrides(read_extended("recipe", tmp_path / "base.yaml"), [f"model.options={empty}"])
    for found in (in_file, on_line):
        assert (found.plain()["model"].get("options") or {}) == {}
        assert found.plain()["model"]["name"] == "x"


def test_an_empty_list_takes_the_place_of_an_inherited_one() -> None:
    assert merge(node({"a": [1, 2]}), node({"a": []})).plain() == {"a": []}


def test_a_file_that_only_extends_has_all_that_it_extends(tmp_path: Path) -> None:
    write(tmp_path, base="a: {b: 1}\n", child="extends: base.yaml\n")
    assert read_extended("recipe", tmp_path / "child.yaml").plain() == {"a": {"b": 1}}


def test_what_was_taken_away_can_be_given_again() -> None:
    merged = merge(merge(node({"a": {"b": 1}}), node({"a": None})), node({"a": {"c": 2}}))
    assert merged.plain() == {"a": {"c": 2}}


def test_a_child_lies_over_its_parents_in_their_order(tmp_path: Path) -> None:
    write(
        tmp_path,
        first="a: 1\nb: {x: 1, y: 1}\n",
        second="a: 2\nb: {y: 2}\n",
        child="extends: [first.yaml, second.yaml]\nb: {z: 3}\n",
    )
    found = read_extended("recipe", tmp_path / "child.yaml")
    assert found.plain() == {"a": 2, "b": {"x": 1, "y": 2, "z": 3}}


def test_a_parent_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes" / "set").mkdir(parents=True)
    write(tmp_path / "recipes" / "set", base="a: 1\n")
    write(tmp_path, child="extends: set/base\nb: 2\n")
    monkeypatch.chdir(tmp_path)
    assert read_extended("recipe", tmp_path / "child.yaml").plain() == {"a": 1, "b": 2}


def test_a_diamond_is_no_circle(tmp_path: Path) -> None:
    write(
        tmp_path,
        top="a: 1\n",
        left="extends: top.yaml\n",
        right="extends: top.yaml\nb: 1\n",
        child="extends: [left.yaml, right.yaml]\n",
    )
    assert read_extended("recipe", tmp_path / "child.yaml").plain() == {"a": 1, "b": 1}


@pytest.mark.parametrize("parent", ["self.yaml", "other.yaml"])
def test_a_circle_is_named_with_its_line(tmp_path: Path, parent: str) -> None:
    write(tmp_path, self=f"a: 1\nextends: {parent}\n", other="extends: self.yaml\n")
    with pytest.raises(ConfigError, match="circle") as error:
        read_extended("recipe", tmp_path / "self.yaml")
    assert "self.yaml" in error.value.message


@pytest.mark.parametrize(
    ("extends", "says"),
    [
        ("3", "the number 3"),
        ("[a, 1]", "the number 1"),
        ("{a: b}", "a mapping"),
        ("gone.yaml", "gone"),
        ("no/such", "no recipe named"),
    ],
)
def test_a_wrong_extends_names_its_line(tmp_path: Path, extends: str, says: str) -> None:
    write(tmp_path, child=f"a: 1\nextends: {extends}\n")
    with pytest.raises(ConfigError, match=says) as error:
        read_extended("recipe", tmp_path / "child.yaml")
    assert "child.yaml:2:" in error.value.message


def test_the_last_override_wins() -> None:
    assert apply_overrides(node({"a": {"b": 1}}), ["a.b=2", "a.c=[3]", "a.b=4"]).plain() == {
        "a": {"b": 4, "c": [3]}
    }


@pytest.mark.parametrize("word", ["a", "=1", "a..b=1", ".a=1", "a.=1", "a=[1", 'a="'])
def test_an_override_that_is_none_names_itself(word: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides(node({}), [word])
    assert f"override `{word}`" in error.value.message
