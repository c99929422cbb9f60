"""Makes the golden values of this folder: ``python -m tests.golden.make``, run once, on torch 2.15.0, CPU.

``resnet20-nam.json``: the network in float64, so that fp32 on any machine must agree with it to rounding. Weights and
pixels come from closed formulas, not from a random generator, whose stream a release may change.
``photo.jpg``: a picture made here of three waves; ``photo.npy``: what app/images.py decoded it to at 64 px, with Pillow
13.0.0 and libjpeg-turbo 3.1. Decoders may differ by a level or two.
``figure.png``: what nam/figure.py drew of the answer below with Pillow 13.0.0, whose font and FreeType it shows; its
numbers are integers and their quotients, the same on every machine.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nam.build import Model, ModelConfig, build

HERE = Path(__file__).parent
GOLDEN_FIGURE = HERE / "figure.png"


def golden_model(dtype: torch.dtype = torch.float32) -> Model:
    """A ResNet-20 with both gates whose every number follows from its place in the state dict."""
    model = build(ModelConfig("resnet20", 10, 32, "nam-both", "cifar", "unit-mean")).to(dtype)
    state = {name: _wave(i, name, tensor) for i, (name, tensor) in enumerate(model.state_dict().items())}
    model.load_state_dict(state)
    return model


def golden_pixels() -> torch.Tensor:
    return (torch.arange(2 * 3 * 32 * 32) * 7919 % 256).view(2, 3, 32, 32).to(torch.uint8)


def _wave(i: int, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + i).view(tensor.shape)
    if tensor.ndim > 1:
        return (wave / tensor[0].numel() ** 0.5).to(tensor.dtype)
    return (1 + wave / 2 if name.endswith(("weight", "running_var")) else wave / 10).to(tensor.dtype)


def golden_square() -> np.ndarray:
    """A photo's place, uint8 (3, 224, 224)."""
    c, y, x = np.mgrid[0:3, 0:224, 0:224]
    return ((x * (c + 1) + 2 * y) // 4 % 256).astype(np.uint8)


def golden_answer() -> dict:
    """As /attention answers, two blocks of a network that is none."""
    labels = [("goldfish", 0.75), ("Egyptian cat", 0.125), ("espresso", 0.0625)]
    return {
        "model": "golden",
        "predictions": [
            {"label": label, "class_id": f"n{i:08}", "probability": probability}
            for i, (label, probability) in enumerate(labels)
        ],
        "blocks": [_golden_block(0, 4, None), _golden_block(1, 2, 0.25)],
        "notes": ["a note that was given with the answer"],
    }


def _golden_block(i: int, side: int, effect: float | None) -> dict:
    maps = [
        [[(7919 * (a + b + side * y + x) % 97 + 1) / 100 for x in range(side)] for y in range(side)]
        for a, b in ((i, 0), (i, 31), (i, 62))
    ]
    return {
        "name": f"layer{i + 1}.0",
        "gates": {"min": 0.0625, "max": 0.9375},
        "map": maps[0],
        "effect": effect,
        "top_channels": [
            {"channel": 3 + k, "weight": 1 / (4 + k), "map": maps[1 + k], "effect": effect} for k in range(2)
        ],
    }


def main() -> None:
    from app.images import decode
    from nam.figure import draw

    with torch.inference_mode():
        logits, gates = golden_model(torch.float64).forward_with_gates(golden_pixels())
    means = torch.stack([gate.mean((1, 2, 3)) for gate in gates], 1)
    golden = {"torch": torch.__version__, "logits": logits.tolist(), "gate_means": means.tolist()}
    (HERE / "resnet20-nam.json").write_text(json.dumps(golden, indent=1) + "\n")

    y, x = np.mgrid[0:120, 0:160]
    waves = np.stack([np.sin(x / 9), np.sin(y / 7), np.sin((x + y) / 11)], -1)
    Image.fromarray((127.5 + 127.5 * waves).round().astype(np.uint8)).save(HERE / "photo.jpg", quality=90)
    picture = decode((HERE / "photo.jpg").read_bytes(), size=64, crop=1.0, max_pixels=10**6)
    np.save(HERE / "photo.npy", picture.pixels)
    GOLDEN_FIGURE.write_bytes(draw(golden_square(), golden_answer()))


if __name__ == "__main__":
    main()
