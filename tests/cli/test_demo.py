"""`compactmtl demo`: the plan of commands, resuming, and a failed gate."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from compactmtl.cli import demo
from compactmtl.cli.main import main
from compactmtl.cli.parser import Parser
from compactmtl.config import dump_recipe, resolve_recipe
from compactmtl.errors import ConfigError, GateError


def write_run(path: Path, recipe: str, overrides: Sequence[str] = (), *, finished: bool = True) -> None:
    """A run folder as far as the demo reads it."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(dump_recipe(resolve_recipe(recipe, overrides).recipe))
    (path / "meta.json").write_text(json.dumps({"version": 1, "specs": {}}))
    (path / "log.jsonl").write_text(json.dumps({"event": "end" if finished else "start"}) + "\n")
    demo.weights(path).parent.mkdir(parents=True)
    demo.weights(path).write_bytes(b"")


def verbs(steps: Sequence[demo.Step]) -> list[str]:
    return [step.words[0] for step in steps]


def test_a_fresh_demo_walks_the_whole_road(tmp_path: Path) -> None:
    steps = demo.plan(tmp_path, ["train.epochs=2"], fresh=False)
    assert verbs(steps) == ["train", "train", "compact", "export", "report"]
    assert not any(step.done() for step in steps)
    assert all("train.epochs=2" in step.words for step in steps[:2])


def test_every_command_is_one_that_its_verb_takes(tmp_path: Path) -> None:
    write_run(tmp_path / "dense", demo.DENSE, finished=False)
    for fresh in (False, True):
        for step in demo.plan(tmp_path, [], fresh=fresh):
            verb = importlib.import_module(f"compactmtl.cli.{step.words[0]}")
            parser = Parser()
            verb.add_arguments(parser)
            parser.parse_args(list(step.words[1:]))


def test_a_finished_training_stays_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    write_run(tmp_path / "dense", demo.DENSE)
    write_run(tmp_path / "compact", demo.COMPACT, finished=False)
    dense, compact, *_ = demo.plan(tmp_path, [], fresh=False)
    assert dense.done()
    assert not compact.done()
    assert compact.words[-1] == "--resume"


def test_fresh_starts_over(tmp_path: Path) -> None:
    write_run(tmp_path / "dense", demo.DENSE)
    step = demo.plan(tmp_path, [], fresh=True)[0]
    assert not step.done()
    assert step.words[-1] == "--overwrite"


def test_a_run_of_other_values_is_refused_with_the_mend(tmp_path: Path) -> None:
    write_run(tmp_path / "dense", demo.DENSE, ["train.epochs=1"])
    with pytest.raises(ConfigError, match="other values") as caught:
        demo.plan(tmp_path, [], fresh=False)
    assert "--fresh" in caught.value.hint


def test_a_result_is_current_only_when_it_is_not_older_than_its_sources(tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    assert not demo.up_to_date(result, source)
    result.write_text("")
    assert not demo.up_to_date(result, source)
    source.write_text("")
    os.utime(source, ns=(10, 10))
    os.utime(result, ns=(20, 20))
    assert demo.up_to_date(result, source)
    os.utime(source, ns=(30, 30))
    assert not demo.up_to_date(result, source)


def test_a_failed_gate_gets_its_report_and_then_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def call(words: Sequence[str]) -> int:
        called.append(words[0])
        if words[0] == "export":
            raise GateError("latency: too slow", "make it faster")
        return 0

    monkeypatch.setattr(demo, "call", call)
    assert main(["demo", "--out", str(tmp_path)]) == 4
    assert called == ["train", "train", "compact", "export", "report"]
    assert "error: latency: too slow" in capsys.readouterr().err


def test_any_other_failure_stops_the_demo_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def call(words: Sequence[str]) -> int:
        called.append(words[0])
        return 2 if words[0] == "compact" else 0

    monkeypatch.setattr(demo, "call", call)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert called == ["train", "train", "compact"]
