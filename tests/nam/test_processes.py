"""Training over two processes, as torchrun starts them: real processes, gloo."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from nam import weights
from nam.data import load_split
from tests.nam.test_train import folder

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
    """One writes, both hold the same weights, and the penalty moves gradients by p * sign over both."""
    load_split(str(folder), "val", 16)
    out = torchrun(str(Path(__file__).with_name("two_processes.py")), str(folder), cwd=folder.parent)
    seen = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert sorted(line["rank"] for line in seen) == [0, 1]
    assert seen[0]["weights"] == seen[1]["weights"]
    assert seen[0]["images"] != seen[1]["images"]
    assert max(line["penalty_error"] for line in seen) < 1e-5


def test_the_command_runs_under_torchrun_and_goes_on(folder: Path) -> None:
    flags = [
        "--no-python",
        str(Path(sys.executable).with_name("nam")),
        "train",
        "--data",
        str(folder),
        "--out",
        "run",
        "--name",
        "n",
        "--arch",
        "resnet20",
    ]
    flags += ["--size", "16", "--epochs", "2", "--batch", "16", "--device", "cpu", "--penalty", "1e-4"]
    first = torchrun(*flags, cwd=folder.parent)
    lines = [line for line in first.splitlines() if line.startswith("{") and "weights" in line]
    assert len(lines) == 1
    _, card = weights.load(folder.parent / "run" / "model.safetensors")
    assert card.recipe["processes"] == 2
    assert card.recipe["epochs"] == 2
    state = torch.load(folder.parent / "run" / "last.pt", weights_only=True)
    assert state["done"] == 2
    again = torchrun(*flags, cwd=folder.parent)
    assert json.loads(again.splitlines()[-1])["top1"] == json.loads(lines[0])["top1"]
