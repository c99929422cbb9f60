"""Training over two processes, as torchrun starts them: real processes, gloo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nam import train as training
from nam import weights
from nam.data import load_split
from nam.processes import Place
from tests.nam.test_train import config, folder

__all__ = ["folder"]

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [*TORCHRUN, *command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, "".join(
        line for line in done.stderr.splitlines(True) if "[rank" in line or "nam:" in line
    )
    return done.stdout


def test_two_processes_train_one_network(folder: Path) -> None:
    """Both hold the same weights, also where the run was interrupted, and the penalty moves gradients by p * sign when
    compiled over both."""
    load_split(str(folder), "val", 16)
    torchrun(str(Path(__file__).with_name("two_processes.py")), str(folder), cwd=folder.parent)
    seen = [json.loads((folder.parent / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [line["rank"] for line in seen] == [0, 1]
    assert len({weights for line in seen for weights in line["weights"]}) == 1
    assert seen[0]["images"] != seen[1]["images"]
    assert max(line["penalty_error"] for line in seen) < 1e-5


def test_the_command_runs_under_torchrun(folder: Path) -> None:
    """The first process alone has something to say, and a finished run says it again."""
    flags = ["--no-python", str(Path(sys.executable).with_name("nam")), "train", "--data", str(folder), "--out", "run"]
    flags += ["--name", "two", "--arch", "resnet20", "--size", "16", "--epochs", "2", "--batch", "16"]
    flags += ["--device", "cpu", "--penalty", "1e-4"]
    first, again = (json.loads(torchrun(*flags, cwd=folder.parent)) for _ in range(2))
    assert first == again
    _, card = weights.load(folder.parent / "run" / "model.safetensors")
    assert (card.recipe["processes"], card.recipe["epochs"]) == (2, 2)
    assert len((folder.parent / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_a_batch_that_does_not_divide_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 15 is no multiple of 2 processes"):
        training.Run(config(folder, batch=15), Place(torch.device("cpu"), 0, 2))
