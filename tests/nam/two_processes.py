"""What each of two processes does in test_processes.py; prints one JSON line."""

import dataclasses
import json
import sys
from pathlib import Path

from nam import train as training
from nam.penalty import scales
from tests.nam.test_penalty import P, gradients
from tests.nam.test_train import config

folder = Path(sys.argv[1])
settings = dataclasses.replace(config(folder), device="cpu", ema=0.0)
with training.processes("cpu") as at:
    run = training.Run(settings, at)
    images = next(run._batches(0))[0]
    run.epoch(0)
    moved = zip(scales(run.model), gradients(run, 0.0), gradients(run, P), strict=True)
    line = {
        "rank": at.rank,
        "images": float(images.sum()),
        "weights": sum(float(p.detach().double().abs().sum()) for p in run.model.parameters()),
        "penalty_error": max(float((b - a - P * s.detach().sign()).abs().max()) for s, a, b in moved),
    }
    print(json.dumps(line), flush=True)
