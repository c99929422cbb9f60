"""What is told of faithfulness is what the command said of the weights that ship."""

import json
from pathlib import Path

import pytest

from nam import files
from nam.maps import METHODS
from tests.bench import faithful

ROOT = Path(__file__).parents[2]


def test_the_pages_show_what_the_record_says() -> None:
    found, page = faithful.read(), (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    assert all(part in page for part in faithful.markdown().split("\n\n"))
    assert faithful.paired(found) in (ROOT / "tests" / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    for told in (page, (ROOT / "tests" / "bench" / "RESULTS.md").read_text(encoding="utf-8")):
        assert f"{found['images']} validation images" in told


def test_the_record_is_of_the_weights_that_ship_and_of_every_method() -> None:
    line = json.loads(faithful.LINE.read_text(encoding="utf-8"))
    assert line["sha256"] == files.file_sha256(files.locate(files.DEFAULT))
    assert {"map", *METHODS, "gradcam", "hirescam", "random", "centre"} == {
        r["method"] for r in faithful.read()["maps"]
    }


def test_the_best_block_is_best_by_both_fills() -> None:
    rows = [("a", "blur", 0.3), ("a", "colour", 0.0), ("b", "blur", 0.2), ("b", "colour", 0.2)]
    found = {"maps": [{"method": "map", "block": b, "fill": f, "score": s} for b, f, s in rows]}
    block, of_fills = faithful.best(found, "map")
    assert block == "b"
    assert {fill: row["score"] for fill, row in of_fills.items()} == {"blur": 0.2, "colour": 0.2}


@pytest.mark.parametrize(("values", "told"), [([0.5, None, 0.5], "0.50"), ([-0.1, 0.3], "-0.10 to 0.30")])
def test_a_range_is_told_once_where_it_is_one_number(values: list[float | None], told: str) -> None:
    assert faithful._range(values) == told
