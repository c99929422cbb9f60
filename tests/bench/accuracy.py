"""What each engine reaches as it serves: the service's own decoding and engine over a whole validation set.

    python -m tests.bench.accuracy --data FOLDER [--weights NAME] [--choices openvino:float32 openvino:bfloat16 ...]

FOLDER holds a folder a class (``val/`` of an ImageFolder data set), named by class ids. One JSON line a choice: top-1
and top-5 in per cent, and against the first choice how often the best label differs, the largest difference of its
probability, and the gates' standard deviation over its, block by block on 200 images (least and largest ratio).
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from app.cli import load_engine
from app.engine import Answer, Ask, AttentionAsk, Engine
from app.images import decode
from app.settings import Settings

CHOICES = ["torch:float32", "openvino:float32", "openvino:bfloat16"]
LOOKS = 200


def images(folder: Path, engine: Engine) -> Iterator[tuple[int, Path]]:
    """The index of its class, and every image, in an order that mixes the classes."""
    index = {label.id: i for i, label in enumerate(engine.card.labels)}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    for path in found:
        yield next(index[part] for part in reversed(path.parts) if part in index), path


def answers(engine: Engine, paths: list[Path], looks: bool) -> list[Answer]:
    """In batches of the engine's largest, in as many threads as it has lanes."""
    every = AttentionAsk(frozenset(block.name for block in engine.card.blocks), maps="none") if looks else None
    card, size = engine.card, engine.card.max_batch

    def one(start: int) -> list[Answer]:
        data = [path.read_bytes() for path in paths[start : start + size]]
        pixels = [decode(d, size=card.size, crop=card.crop, max_pixels=10**8).pixels for d in data]
        return engine([Ask(p, 5, every) for p in pixels])

    with ThreadPoolExecutor(card.lanes) as pool:
        return [answer for batch in pool.map(one, range(0, len(paths), size)) for answer in batch]


def measure(choice: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Answer], list[Answer]]:
    name, _, dtype = choice.partition(":")
    engine = load_engine(Settings(weights=arguments.weights, engine=name, dtype=dtype, device=arguments.device))
    labels, paths = zip(*images(arguments.data, engine), strict=True)
    seen = answers(engine, list(paths), looks=False)
    right = np.array([answer.indices == label for answer, label in zip(seen, labels, strict=True)])
    figures = {
        "engine": engine.card.facts["engine"],
        "dtype": dtype,
        "images": len(paths),
        "top1": round(100 * right[:, 0].mean(), 2),
        "top5": round(100 * right.any(1).mean(), 2),
    }
    some = list(paths[:: max(1, len(paths) // LOOKS)])
    return figures, seen, answers(engine, some, looks=True)


def against(seen: list[Answer], first: list[Answer], looks: list[Answer], first_looks: list[Answer]) -> dict[str, Any]:
    other = np.array([a.indices[0] != b.indices[0] for a, b in zip(seen, first, strict=True)])
    apart = [abs(a.probabilities[0] - b.probabilities[0]) for a, b in zip(seen, first, strict=True)]
    ratios = [
        x.std / y.std for a, b in zip(looks, first_looks, strict=True) for x, y in zip(a.blocks, b.blocks, strict=True)
    ]
    return {
        "other label, per cent": round(100 * other.mean(), 2),
        "largest difference of the best probability": round(float(max(apart)), 6),
        "gates' std, ratio": [round(min(ratios), 4), round(max(ratios), 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="resnet18-nam-tiny-imagenet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--choices", nargs="+", default=CHOICES)
    arguments = parser.parse_args()
    first: tuple[list[Answer], list[Answer]] | None = None
    for choice in arguments.choices:
        figures, seen, looks = measure(choice, arguments)
        first = first or (seen, looks)
        print(json.dumps(figures | against(seen, first[0], looks, first[1])), flush=True)


if __name__ == "__main__":
    main()
