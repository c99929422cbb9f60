"""What ``nam evaluate --faithfulness`` said of shipped weights, as the tables of weights/README.md and RESULTS.md.

nam evaluate --data FOLDER --no-attention --faithfulness > tests/bench/results/faithfulness.json
python -m tests.bench.faithful
"""

import json
from pathlib import Path
from typing import Any

LINE = Path(__file__).parent / "results" / "faithfulness.json"
FILLS = {"blur": "blurred", "colour": "mean colour"}
COSTS = {"map": "forward", "activation": "forward", "class": "forward", "product": "forward"}
COSTS |= {"gradcam": "backward", "hirescam": "backward", "centre": "nothing"}
SHOWN = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "centre": "centred blob"}

Found = dict[str, Any]


def read() -> Found:
    line: Found = json.loads(LINE.read_text(encoding="utf-8"))
    return line["faithfulness"]


def by_block(found: Found, fill: str) -> str:
    """Every map's score, a row a method and a column a block."""
    scores = {(row["method"], row["block"]): row for row in found["maps"] if row["fill"] == fill}
    blocks = list(dict.fromkeys(block for method, block in scores if method == "map"))
    rows = [
        [_name(method), *(f"{scores[method, b]['score']:.3f}" if (method, b) in scores else "" for b in blocks)]
        for method in COSTS
        if method != "centre"
    ]
    return _table([f"score, {FILLS[fill]}", *blocks], rows)


def paired(found: Found) -> str:
    """The best block of each method by both fills, and how far it is above each control."""
    rows = []
    for method, cost in COSTS.items():
        block, of_fills = best(found, method)
        for fill, row in of_fills.items():
            over = [f"{row[f'over_{c}']:+.3f} ± {row[f'over_{c}_error']:.3f}" for c in ("random", "centre", "gradcam")]
            score = f"{row['score']:.3f} ± {row['score_error']:.3f}"
            rows.append([f"{_name(method)} {block}".strip(), cost, FILLS[fill], score, *over])
    where = {FILLS[row["fill"]]: row["gradcam_block"] for row in found["maps"]}
    rivals = ", ".join(f"{fill}: {block}" for fill, block in where.items())
    return _table(
        ["map", "costs", "gone is", "score", "over random", "over the blob", f"over the best Grad-CAM ({rivals})"], rows
    )


def best(found: Found, method: str) -> tuple[str, dict[str, Found]]:
    """The block where a method's mean score over the fills is highest, and its rows."""
    rows: dict[str, dict[str, Found]] = {}
    for row in found["maps"]:
        if row["method"] == method:
            rows.setdefault(row["block"], {})[row["fill"]] = row
    block = max(rows, key=lambda name: sum(row["score"] for row in rows[name].values()))
    return block, rows[block]


def channels(found: Found) -> str:
    """How far each order of a block's channels is above random ones."""
    scores = {(row["block"], row["order"]): row for row in found["channels"]}
    rows = [
        [
            block,
            *(
                f"{scores[block, order]['over_random']:+.3f} ± {scores[block, order]['over_random_error']:.3f}"
                for order in ("weight", "slope", "energy")
            ),
        ]
        for block in dict.fromkeys(block for block, _ in scores)
    ]
    return _table(["block", "weight, over random", "slope", "energy, the image's own"], rows)


def sanity(found: Found) -> str:
    """The forward's maps and Grad-CAM, against what they become; least and largest over blocks."""
    columns = ("classifier", "own_block", "all", "other_image")
    rows = []
    for method in COSTS:
        of_method = [row for row in found["sanity"] if row["method"] == method]
        if of_method:
            rows.append([_name(method), *(_range([row[column] for row in of_method]) for column in columns)])
    heads = [
        "without the classifier",
        "and without the blocks down to its own",
        "without anything",
        "another image's map",
    ]
    return _table(["rank correlation", *heads], rows)


def markdown() -> str:
    found = read()
    return "\n\n".join([paired(found), *(by_block(found, fill) for fill in FILLS), channels(found), sanity(found)])


def _name(method: str) -> str:
    return SHOWN.get(method, f"`{method}`")


def _range(values: list[float | None]) -> str:
    told = [value for value in values if value is not None]
    least, most = f"{min(told):.2f}", f"{max(told):.2f}"
    return least if least == most else f"{least} to {most}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


if __name__ == "__main__":
    print(markdown())
