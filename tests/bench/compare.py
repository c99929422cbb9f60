"""The comparison of attentions: same code, same data, same budget, several seeds.

    python -m tests.bench.compare run --data CIFAR100 --preset cpu    (or gpu; resumes; several seeds side by side)
    python -m tests.bench.compare table --preset cpu                  (writes weights/comparison/cpu.md and a plot)

A row is the paper's recipe with a few changes, all in ``ROWS``. Every run leaves ``record.json``, written by the
training program; ``run`` gathers them, a line each, in ``weights/comparison/<preset>.jsonl``, and ``table`` reads
nothing else but latencies, which it measures itself.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from nam import data as datasets
from nam.build import ModelConfig, build, place
from nam.convert import warm_start
from nam.fold import fold
from nam.recipes import RECIPES, TrainConfig
from nam.train import train
from nam.weights import load, save

OUT = Path("weights/comparison")
SEEDS = (0, 1, 2)

# The size of the question. "gpu" is the paper's setting with ResNet-18; "cpu" is what two cores bear in an hour.
PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {"arch": "resnet18", "stem": "cifar", "size": 32, "epochs": 200},
    "cpu": {"arch": "resnet20", "stem": "cifar", "size": 16, "epochs": 4},
}

_UNIT = {"weighting": "unit-mean"}
_ALL = {**_UNIT, "live_gradient": True, "scale_lr": 10.0, "decay_scales": False}

# Everything not said here is the paper's recipe without its penalty. ``all``: unit-mean, live gradient, no decay and
# ten times the others' learning rate for the scales. ``warm``: half of the epochs without attention, then half from
# that network's own batch-norm scales (a scale of 1: the gates live from the start); ``again``, its control: no
# attention in the second half either.
ROWS: dict[str, dict[str, Any]] = {
    "none": {"attention": "none"},
    "half": {"attention": "half"},
    "se": {"attention": "se"},
    "bam": {"attention": "bam"},
    "cbam": {"attention": "cbam"},
    "nam": {},
    "nam-spatial": {"attention": "nam-spatial"},
    "nam-both": {"attention": "nam-both"},
    "nam, penalty 1e-4": {"penalty": 1e-4},
    "live gradient": {"live_gradient": True},
    "scale lr 10": {"scale_lr": 10.0},
    "no decay": {"decay_scales": False},
    "unit-mean": _UNIT,
    "again": {"attention": "none", "start": "again"},
    "warm": {"start": "warm"},
    "all": _ALL,
    "all, scale lr 100": {**_ALL, "scale_lr": 100.0},
    "all, warm": {**_ALL, "start": "warm"},
}


def configure(row: str, preset: str, seed: int, data: str, runs: Path) -> TrainConfig:
    """The run of one row and seed, as it starts from fresh weights."""
    size = PRESETS[preset]
    fields: dict[str, Any] = {**RECIPES["paper"], "penalty": 0.0, **size, **ROWS[row]}
    mean, std = datasets.statistics(data, fields["size"])
    fields |= {
        "classes": datasets.class_count(data),
        "mean": mean,
        "std": std,
        "stages": ((fields["size"], fields["epochs"]),),
    }
    return TrainConfig(
        data=data,
        out=runs / preset / f"{_slug(row)}-{seed}",
        name=row,
        seed=seed,
        model=ModelConfig(**_only(ModelConfig, fields)),
        **_only(TrainConfig, {k: v for k, v in fields.items() if k != "model"}),
    )


def run_one(row: str, preset: str, seed: int, data: str, runs: Path) -> None:
    """Train a row's run to its end; one that is finished stays as it is."""
    config = configure(row, preset, seed, data, runs)
    if (config.out / "record.json").exists():
        return
    if start := ROWS[row].get("start"):
        config = _second_half(config, start, preset, seed, data, runs)
    train(config)


def _second_half(config: TrainConfig, start: str, preset: str, seed: int, data: str, runs: Path) -> TrainConfig:
    """Half of the budget goes to a plain network, the other half starts from it; both rows share the first half."""
    half = tuple((side, epochs // 2) for side, epochs in config.stages)
    plain = configure("none", preset, seed, data, runs)
    plain = dataclasses.replace(plain, out=runs / preset / f"first-half-{seed}", stages=half, name="first half")
    plain.out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{plain.out}.lock"):
        if not (plain.out / "record.json").exists():
            train(plain)
    init = plain.out / "model.safetensors"
    if start == "warm":
        model, card = load(init)
        init = config.out.with_suffix(".safetensors")
        config.out.parent.mkdir(parents=True, exist_ok=True)
        save(init, warm_start(model, config.model, scale=1.0), dataclasses.replace(card, config=config.model))
    return dataclasses.replace(config, init=init, stages=half)


def run_all(preset: str, data: str, runs: Path, workers: int, threads: int) -> None:
    """Every row and seed, ``workers`` at a time, each a process of ``threads`` threads; the records together."""
    waiting = [(row, seed) for seed in SEEDS for row in ROWS]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        running = [process for process in running if _going(process)]
        while waiting and len(running) < workers:
            row, seed = waiting.pop(0)
            print(f"{row}, seed {seed}", file=sys.stderr)
            command = [
                "one",
                "--preset",
                preset,
                "--data",
                data,
                "--runs",
                str(runs),
                "--row",
                row,
                "--seed",
                str(seed),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            running.append(subprocess.Popen([sys.executable, "-m", "tests.bench.compare", *command], env=environment))
        gather(preset, runs)
        time.sleep(2)
    gather(preset, runs)


def _going(process: subprocess.Popen[bytes]) -> bool:
    code = process.poll()
    if code:
        raise SystemExit(f"{process.args} ended with {code}")
    return code is None


def gather(preset: str, runs: Path) -> None:
    """The records of all finished runs as they are, a line each, in ``weights/comparison/<preset>.jsonl``. Those that
    came from elsewhere stay."""
    path = OUT / f"{preset}.jsonl"
    found = {(r["row"], r["seed"]): r for records in read(preset).values() for r in records} if path.exists() else {}
    for row in ROWS:
        for seed in SEEDS:
            record = runs / preset / f"{_slug(row)}-{seed}" / "record.json"
            if record.exists():
                found[row, seed] = {"row": row, "seed": seed, **json.loads(record.read_text())}
    OUT.mkdir(parents=True, exist_ok=True)
    ordered = (found[row, seed] for row in ROWS for seed in SEEDS if (row, seed) in found)
    path.with_suffix(".partial").write_text("".join(f"{json.dumps(record)}\n" for record in ordered))
    path.with_suffix(".partial").rename(path)


def _slug(row: str) -> str:
    return row.replace(", ", "-").replace(" ", "-")


def _only(kind: type, fields: dict[str, Any]) -> dict[str, Any]:
    return {f.name: fields[f.name] for f in dataclasses.fields(kind) if f.name in fields}


def table(preset: str) -> None:
    """Measure latencies, then write the tables, ``<preset>.md``, and the plot, ``<preset>-spread.png``."""
    records = read(preset)
    times = latencies(preset, list(records))
    (OUT / f"{preset}-latency.json").write_text(json.dumps({row: round(ms, 3) for row, ms in times.items()}) + "\n")
    (OUT / f"{preset}.md").write_text(render(preset))
    print(render(preset))
    plot(preset, records)


def read(preset: str) -> dict[str, list[dict[str, Any]]]:
    """The records of every row, seed by seed."""
    records: dict[str, list[dict[str, Any]]] = {}
    for line in (OUT / f"{preset}.jsonl").read_text().splitlines():
        record = json.loads(line)
        records.setdefault(record["row"], []).append(record)
    return records


def render(preset: str) -> str:
    """Two tables, of nothing but the files in ``weights/comparison``: accuracy and cost, and what the attention is."""
    records = read(preset)
    times = json.loads((OUT / f"{preset}-latency.json").read_text())
    rows = [_accuracy_row(row, found, times[row]) for row, found in records.items()]
    head = (
        "| attention | seeds | top-1, % | top-5, % | parameters | MFLOP | forward, ms |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    alive = [_attention_row(row, found) for row, found in records.items() if "attention" in found[0]["metrics"]]
    alive_head = (
        "| attention | max(w)·C | entropy of w / log C | gates' std | lost held, a block | lost permuted, a block |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n\n" + alive_head + "\n".join(alive) + "\n"


def _accuracy_row(row: str, found: list[dict[str, Any]], ms: float) -> str:
    top1, top5 = ([r["metrics"]["val"][k] for r in found] for k in ("top1", "top5"))
    cost = f"{found[0]['params']:,} | {found[0]['flops'] / 1e6:.2f} | {ms:.2f}"
    return f"| {row} | {len(found)} | {_spread(top1)} | {_spread(top5)} | {cost} |"


def _attention_row(row: str, found: list[dict[str, Any]]) -> str:
    """Over blocks and seeds: the range of what describes, and mean and largest of what is lost."""
    blocks = [block for record in found for block in record["metrics"]["attention"]]
    peak, entropy = (_range([b[k] for b in blocks], 4) for k in ("max_weight", "weight_entropy"))
    gates = _range([b["gate_std"] for b in blocks], 2)
    return f"| {row} | {peak} | {entropy} | {gates} | {_lost(blocks, 'held')} | {_lost(blocks, 'permuted')} |"


def _lost(blocks: list[dict[str, Any]], how: str) -> str:
    lost = [b[f"top1_lost_{how}"] for b in blocks]
    real = sum(b[f"top1_lost_{how}"] > 2 * b[f"{how}_error"] for b in blocks)
    return f"{statistics.mean(lost):z.2f}, at most {max(lost):z.2f}; in {real} of {len(blocks)} beyond twice the error"


def _range(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}g} to {max(values):.{digits}g}"


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def latencies(preset: str, rows: list[str], rounds: int = 30) -> dict[str, float]:
    """Milliseconds of a folded fp32 forward of one image, one thread: the median over interleaved rounds."""
    torch.set_num_threads(1)
    size = PRESETS[preset]["size"]
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    configs = {row: ModelConfig(**_only(ModelConfig, {**PRESETS[preset], "classes": 100, **ROWS[row]})) for row in rows}
    models = {row: place(fold(build(config)), torch.device("cpu")) for row, config in configs.items()}
    times: dict[str, list[float]] = {row: [] for row in rows}
    with torch.inference_mode():
        for _ in range(rounds):
            for row, model in models.items():
                started = time.perf_counter()
                model(pixels)
                times[row].append(time.perf_counter() - started)
    return {row: 1e3 * statistics.median(found) for row, found in times.items()}


def plot(preset: str, records: dict[str, list[dict[str, Any]]]) -> None:
    """The gates' standard deviation by block and epoch, a panel a row, a line a block: the first seed's."""
    from matplotlib import pyplot

    shown = [row for row, found in records.items() if found[0]["log"][-1]["attention"]]
    figure, panels = pyplot.subplots(3, -(-len(shown) // 3), figsize=(16, 9), sharey=True, squeeze=False)
    for panel in panels.flat[len(shown) :]:
        panel.set_axis_off()
    for row, panel in zip(shown, panels.flat, strict=False):
        log = records[row][0]["log"]
        epochs = [line["epoch"] for line in log]
        for block in log[0]["attention"]:
            panel.plot(epochs, [line["attention"][block][0] for line in log], "o-", label=block)
        panel.set(title=row, xlabel="epoch", yscale="log", xticks=epochs)
        panel.title.set_fontsize(9)
    panels[0, 0].set_ylabel("standard deviation of the gates")
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(OUT / f"{preset}-spread.png", dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "one", "table"])
    parser.add_argument("--preset", choices=list(PRESETS), required=True)
    parser.add_argument("--data", default="CIFAR100", help="a folder with train/ and val/, or a name of torchvision's")
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--row", choices=list(ROWS))
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    if given.action == "run":
        run_all(given.preset, given.data, given.runs, given.workers, given.threads)
    elif given.action == "one":
        run_one(given.row, given.preset, given.seed, given.data, given.runs)
    else:
        table(given.preset)


if __name__ == "__main__":
    main()
