from pathlib import Path

from compactmtl.data.datasets import dataset_module
from compactmtl.data.registry import DATASETS, dataset_names


def test_a_module_that_describes_a_data_set_is_one(tmp_path: Path) -> None:
    (tmp_path / "birds.py").write_text('DESCRIPTION = "birds"\n', encoding="utf-8")
    (tmp_path / "files.py").write_text(
        'DESCRIPTION_FILE = "x.yaml"\n\n\ndef f():\n    DESCRIPTION = 1\n', encoding="utf-8"
    )
    assert dataset_names(tmp_path) == ("birds",)


def test_every_data_set_has_what_the_protocol_asks_for() -> None:
    assert len(DATASETS) >= 11
    for name in DATASETS:
        module = dataset_module(name)
        assert module.DESCRIPTION
        assert len(module.DEFAULT_SIZE) == 2
        assert {"train", "val"} <= set(module.SPLITS)
        assert callable(module.load)
        assert callable(module.problems)
