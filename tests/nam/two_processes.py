"""What each of two processes does in test_processes.py; leaves ``<rank>.json`` beside the data."""

import dataclasses
import json
import sys
from pathlib import Path

from nam import train as training
from nam.penalty import scales
from nam.processes import processes
from tests.nam.test_penalty import P, gradients
from tests.nam.test_train import config

folder = Path(sys.argv[1])
settings = dataclasses.replace(config(folder), device="cpu", ema=0.0)
with processes("cpu") as at:
    images = next(training.Run(settings, at)._batches(0))[0]
    ends = []
    for name, pause in (("whole", False), ("parts", True)):
        parts = dataclasses.replace(settings, out=folder.parent / name)
        run = training.Run(parts, at)
        run.epoch(0)
        run = training.Run(parts, at) if pause else run
        run.epoch(1)
        ends.append(sum(float(p.detach().double().abs().sum()) for p in run.model.parameters()))
    compiled = training.Run(dataclasses.replace(settings, compile=True), at)
    moved = zip(scales(compiled.model), gradients(compiled, 0.0), gradients(compiled, P), strict=True)
    line = {
        "rank": at.rank,
        "images": float(images.sum()),
        "weights": ends,
        "penalty_error": max(float((b - a - P * s.detach().sign()).abs().max()) for s, a, b in moved),
    }
    (folder.parent / f"{at.rank}.json").write_text(json.dumps(line))
