from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.config.yaml import dump_yaml, parse_override, read_yaml, top_level_text
from compactmtl.errors import ConfigError

# A file cannot hold a lone surrogate, and YAML reads no carriage return back as itself unless quoted (which we do).
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
values = st.recursive(
    scalars | st.lists(scalars, max_size=3),
    lambda inner: st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def read(folder: Path, content: str) -> Any:
    path = folder / "file.yaml"
    path.write_text(content, encoding="utf-8", newline="")
    return read_yaml(path).plain()


@pytest.mark.slow
@given(data=st.dictionaries(text, values, max_size=5))
def test_what_is_dumped_reads_back_equal_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    back = read(tmp_path_factory.mktemp("yaml"), dump_yaml(data) or "{}")
    assert back == data
    assert list(back) == list(data)
    assert repr(back) == repr(data)  # 1 is not 1.0, nor True


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), (".5e3", 500.0), ("5.", 5.0), ("-3", -3), ("+7", 7), ("012", 12), ("0x1F", 31), ("0o17", 15),
        ("off", "off"), ("no", "no"), ("yes", "yes"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("2001-01-01", "2001-01-01"), ("12:30:00", "12:30:00"), ("1_000", "1_000"), ("'1'", "1"), ('"true"', "true"), ("!", None),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, written: str, value: object) -> None:
    if written == "!":
        with pytest.raises(ConfigError, match="tag"):
            read(tmp_path, "a: ! x\n")
        return
    found = read(tmp_path, f"a: {written}\n")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("directive", ["", "%YAML 1.1\n---\n"])
def test_a_directive_does_not_bring_back_yaml_1_1(tmp_path: Path, directive: str) -> None:
    assert read(tmp_path, f"{directive}a: off\n") == {"a": "off"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "`a` was given before, on line 1"),
        ("a:\n  b: 1\n  c: {d: 1, d: 2}\n", 3, "`d` was given before"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "tag"),
        ("a: !mine 1\n", 1, "tag"),
        ("a: &x 1\n", 1, "anchors"),
        ("b: 0\na: *x\n", 2, "anchors"),
        ("a: .inf\n", 1, "finite"),
        ("a: [1, .nan]\n", 1, "finite"),
        ("a: 1e999\n", 1, "finite"),
        ('b: 0\na: "\\ud800"\n', 2, "surrogate"),
        ('"\\udcff": 1\n', 1, "surrogate"),
        ("1: 2\n", 1, "name as key"),
        ("a: [1, 2\nb: 3\n", 2, "expected"),
        ("a: b: c\n", 1, "not allowed here"),
        ("a:\n\t- b\n", 2, "token"),
        ("a: " + "[" * 5000 + "]" * 5000, 1, "nested deeper"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, content: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        read(tmp_path, content)
    assert f"file.yaml:{line}:" in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("content", ["", "# nothing\n", "- 1\n", "word\n", "a: 1\n---\nb: 2\n", "a: \x01\n"])
def test_a_file_that_is_not_one_mapping_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"file\.yaml"):
        read(tmp_path, content)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3), ("1e-4", 1e-4), ("null", None), ("", None), ("true", True), ("off", "off"), ("[64, 64]", [64, 64]),
        ("{name: sgd, lr: 0.1}", {"name": "sgd", "lr": 0.1}), ("'3'", "3"), ("/data/a #1: b", "/data/a #1: b"),
        ("*.py", "*.py"), ("a: b", "a: b"), ("@x", "@x"), ("- x", "- x"),
    ],
)  # fmt: skip
def test_an_override_is_a_scalar_a_flow_value_or_text(word: str, value: object) -> None:
    assert parse_override(word).plain() == value


def test_a_top_level_text_is_read_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(
        "data:\n  description: inner\n  list: [description, x]\ndescription: >\n  two\n  lines\nbroken: [\n",
        "utf-8",
    )
    assert top_level_text(path, "description") == "two lines"
