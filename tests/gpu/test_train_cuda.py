"""Training on a CUDA device: compiled, bf16, every augmentation there. ``make gpu`` runs it."""

import json
from pathlib import Path

import pytest
import torch

from nam import train as training
from nam.penalty import scales
from nam.processes import Place
from nam.recipes import RECIPES
from tests.nam.test_penalty import P, gradients
from tests.nam.test_train import config, folder

__all__ = ["folder"]

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device here; the same training is tested on the CPU in tests/nam/test_train.py",
)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_trains_and_goes_on(folder: Path, recipe: str) -> None:
    changes = {k: v for k, v in RECIPES[recipe].items() if k not in ("epochs", "stem")}
    changes |= {"stages": ((16, 2),), "warmup_epochs": 1.0, "holdout": 8, "device": "cuda"}
    first = training.Run(config(folder, **changes), Place(torch.device("cuda")))
    first.epoch(0)
    assert all(t.is_cuda for t in (*first.model.parameters(), *first.model.buffers()))
    result = training.train(config(folder, **changes))
    assert result["epochs"] == 2
    lines = [json.loads(line) for line in (folder.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(0 < line["loss"] < 3 for line in lines)


def test_the_penalty_acts_when_compiled(folder: Path) -> None:
    run = training.Run(config(folder, device="cuda", compile=True), Place(torch.device("cuda")))
    moved = zip(scales(run.model), gradients(run, 0.0), gradients(run, P), strict=True)
    for scale, before, after in moved:
        torch.testing.assert_close(after - before, P * scale.detach().sign(), rtol=0, atol=1e-4)
