"""The comparison that is told is the one that was measured: tables come from records alone, and the page has them."""

from pathlib import Path

import pytest

from nam.build import ModelConfig
from tests.bench import compare

PAGE = Path("weights/README.md")


def test_the_page_shows_what_the_records_say() -> None:
    told = (compare.OUT / "cpu.md").read_text(encoding="utf-8")
    assert compare.render("cpu") == told
    assert all(part in PAGE.read_text(encoding="utf-8") for part in told.split("\n\n"))


def test_every_row_was_run_with_every_seed_under_one_recipe() -> None:
    records = compare.read("cpu")
    assert list(records) == list(compare.ROWS)
    for row, found in records.items():
        assert [record["seed"] for record in found] == list(compare.SEEDS), row
        changes = {"start", *compare.ROWS[row]}
        for record in found:
            config = {**record["config"], **record["config"]["model"]}
            assert {k: config[k] for k in compare.ROWS[row] if k != "start"} == {
                k: v for k, v in compare.ROWS[row].items() if k != "start"
            }
            for name, value in {"lr": 0.1, "batch": 128, "penalty": 0.0, "schedule": "steps", "ema": 0.0}.items():
                assert name in changes or config[name] == value
            assert record["metrics"]["val"]["images"] == 10_000


def test_mean_and_deviation_are_over_seeds() -> None:
    found = [{"metrics": {"val": {"top1": v, "top5": 2 * v}}, "params": 1000, "flops": 2.5e6} for v in (10.0, 11, 12)]
    row = compare._accuracy_row("x", found, 1.234)
    assert row == "| x | 3 | 11.00 ± 1.00 | 22.00 ± 2.00 | 1,000 | 2.50 | 1.23 |"


def test_losses_beyond_twice_the_error_are_counted() -> None:
    blocks = [{"top1_lost_held": lost, "held_error": 0.2} for lost in (0.39, 0.41, -1.0, 0.2)]
    assert compare._lost(blocks, "held") == "0.00, at most 0.41; in 1 of 4 beyond twice the error"


@pytest.mark.parametrize("row", compare.ROWS)
def test_every_row_is_a_network_that_builds(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nam.data.statistics", lambda data, size: ((0.5,) * 3, (0.25,) * 3))
    monkeypatch.setattr("nam.data.class_count", lambda data: 100)
    for preset in compare.PRESETS:
        config = compare.configure(row, preset, 1, "CIFAR100", tmp_path)
        assert isinstance(config.model, ModelConfig)
        assert (config.seed, config.epochs) == (1, compare.PRESETS[preset]["epochs"])
