"""The commands about models: ``nam train``, ``evaluate``, ``convert``, ``export``, ``quantize``, ``weights diff``.

They import torch late.
"""

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.flags import command, floats, positive, stages

if TYPE_CHECKING:
    from nam.recipes import TrainConfig


def add_model_commands(commands: Any) -> None:
    """Declare them."""
    _add_training(commands)
    _add_conversion(commands)
    _add_export(commands)
    _add_quantization(commands)
    _add_weights(commands)


def train(arguments: argparse.Namespace) -> int:
    from nam.train import train as run

    # Of torchrun's processes the first alone has something to say.
    if result := run(train_config(arguments)):
        print(json.dumps(result))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    from nam import files, weights
    from nam.build import choose_device, place
    from nam.data import load_split
    from nam.evaluate import cost
    from nam.evaluate import evaluate as run

    model, card = weights.load(arguments.weights or files.DEFAULT)
    split = load_split(arguments.data, arguments.split, card.config.size, crop=card.crop)
    split, how = split.labelled([label.id for label in card.labels], [label.en for label in card.labels])
    facts = {"weights": card.name, "sha256": card.sha256, "notes": card.notes, "data": arguments.data}
    facts |= {"split": arguments.split, "classes_by": how}
    line: dict[str, Any] = facts | run(place(model, choose_device()), split) | cost(model, card.config.size)
    if arguments.attention:
        from nam.alive import liveness

        line["attention"] = liveness(model, split)
    if arguments.faithfulness:
        from nam.faithful import faithfulness

        line["faithfulness"] = faithfulness(model, split, images=arguments.images)
    print(json.dumps(line))
    return 0


def diff(arguments: argparse.Namespace) -> int:
    from nam import weights
    from nam.diff import compared, draw, table
    from nam.diff import diff as run

    (first, before), (second, after) = (weights.load(file) for file in (arguments.before, arguments.after))
    both = compared(first, second)
    if arguments.output:
        arguments.output.write_bytes(
            draw(both, (f"{before.name} {before.sha256[:8]}", f"{after.name} {after.sha256[:8]}"))
        )
    if arguments.json:
        cards = {"before": before, "after": after}
        said = {side: {"weights": card.name, "sha256": card.sha256} for side, card in cards.items()}
        print(json.dumps({**said, "blocks": run(both)}))
    else:
        print(table(run(both)))
    return 0


def convert(arguments: argparse.Namespace) -> int:
    from nam.convert import Conversion
    from nam.convert import convert as run

    known = {f.name for f in dataclasses.fields(Conversion)}
    print(json.dumps(run(Conversion(**{name: value for name, value in vars(arguments).items() if name in known}))))
    return 0


def export(arguments: argparse.Namespace) -> int:
    from nam import files

    weights, ending = arguments.weights or files.DEFAULT, _ENDINGS[arguments.format]
    if arguments.output.suffix != ending:
        raise ValueError(f"{arguments.output}: the name of --format {arguments.format} ends in {ending}")
    if arguments.format == "onnx":
        from nam.onnx_export import export as run
    else:
        from nam.export import export as run
    run(weights, arguments.output)
    print(json.dumps({"weights": str(weights), "format": arguments.format, "graph": str(arguments.output)}))
    return 0


def quantize(arguments: argparse.Namespace) -> int:
    from app.graphs import cache_folder, checked, graph_of, int8_graph_of, seal
    from app.settings import Settings
    from nam import files, weights
    from nam.data import load_split
    from nam.quantize import quantize as run

    cache = cache_folder(Settings().cache_dir)
    file, sha256 = files.verified(arguments.weights or files.DEFAULT)
    graph, target = graph_of(file, sha256, cache), int8_graph_of(sha256, cache)
    _, card = weights.load(file)
    split = load_split(arguments.data, "train", card.config.size, crop=card.crop)
    step = max(1, len(split) // arguments.images)
    run(checked(graph), split.pixels[::step][: arguments.images].numpy(), target)
    seal(target)
    print(json.dumps({"weights": card.name, "images": arguments.images, "graph": str(target)}))
    return 0


def train_config(arguments: argparse.Namespace) -> "TrainConfig":
    """The flags; below them what the weights to start from say of the network; below these the recipe."""
    from nam.build import ModelConfig
    from nam.data import class_count
    from nam.recipes import RECIPES, TrainConfig

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    recipe = {"arch": "resnet18", "attention": "nam", **RECIPES[arguments.recipe]}
    fields = {**recipe, **_started(arguments.init), **given}
    if not fields["attention"].startswith("nam") and "penalty" not in given:
        fields["penalty"] = 0.0
    if "stages" not in fields:
        if "epochs" not in fields:
            raise ValueError("say --epochs or --stages: this recipe has no length of its own")
        fields["stages"] = ((arguments.size, fields["epochs"]),)
    fields = {**_measured(arguments.data, fields), "classes": class_count(arguments.data), **fields}
    model = ModelConfig(**{f.name: fields[f.name] for f in dataclasses.fields(ModelConfig) if f.name in fields})
    known = {f.name for f in dataclasses.fields(TrainConfig)} - {"model"}
    return TrainConfig(model=model, **{name: value for name, value in fields.items() if name in known})


def _started(init: Path | None) -> dict[str, Any]:
    """What the network of given weights is, but for its size and classes."""
    from nam.weights import load

    if init is None:
        return {}
    fields = load(init)[1].config.to_dict()
    return {name: value for name, value in fields.items() if name not in ("classes", "size")}


def _measured(data: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The training images' own mean and deviation, where nothing says them."""
    from nam.data import statistics

    if "mean" in fields and "std" in fields:
        return {}
    mean, std = statistics(data, max(side for side, _ in fields["stages"]))
    return {"mean": mean, "std": std}


# What a recipe sets and a flag changes; none of them has a default of its own.
_RECIPE_FLAGS: dict[str, dict[str, Any]] = {
    "stem": {"choices": ["imagenet", "cifar"], "help": "7x7 stride 2 and a pool, or 3x3 for small images"},
    "weighting": {"choices": ["sum-one", "unit-mean"], "help": "unit-mean, w = C|s| / sum|s|, deviates from the paper"},
    "live_gradient": {
        "action": argparse.BooleanOptionalAction,
        "help": "scales learn through the weights too; deviates from the paper",
    },
    "scale_lr": {
        "type": float,
        "help": "learning rate of gamma and lambda, a multiple; not 1: deviates from the paper",
    },
    "decay_scales": {
        "action": argparse.BooleanOptionalAction,
        "help": "weight decay on biases and batch-norm scales too, as the paper's script; none: deviates from it",
    },
    "penalty": {"type": float, "help": "p of the sparsity term over gamma and lambda; the paper: 1e-4"},
    "mean": {"type": floats, "help": "channel means, three numbers; else the data's own"},
    "std": {"type": floats, "help": "channel deviations, three numbers; else the data's own"},
    "batch": {"type": int, "help": "images a step, over all processes"},
    "lr": {"type": float, "help": "the highest learning rate"},
    "schedule": {"choices": ["cosine", "steps"], "help": "steps: a fifth from 30, 60 and 80 %% of the run on"},
    "warmup_epochs": {"type": float},
    "nesterov": {"action": argparse.BooleanOptionalAction},
    "weight_decay": {"type": float},
    "label_smoothing": {"type": float},
    "crop": {"choices": ["resized", "padded"], "help": "a random part resized, or padded by an eighth and cropped"},
    "crop_scale": {"type": floats, "help": "least and largest share of the area in a resized crop"},
    "trivial_augment": {"action": argparse.BooleanOptionalAction, "help": "TrivialAugment"},
    "erasing": {"type": float, "help": "probability of random erasing"},
    "cutmix": {"type": float, "help": "alpha of CutMix; 0: none"},
    "mixup": {"type": float, "help": "alpha of mixup; 0: none"},
    "ema": {"type": float, "help": "decay of the averaged weights, a step; 0: no average"},
}


def _add_training(commands: Any) -> None:
    added = command(commands, train, "train a network; the same command resumes an interrupted run")
    add = added.add_argument
    add("--data", required=True, help="a folder with train/ and val/ (or test/), or a torchvision dataset's name")
    add("--out", type=Path, required=True, help="where checkpoints, the log and the weights go")
    add("--name", required=True, help="the model's name in its card")
    add(
        "--recipe", default="base", choices=["base", "paper", "strong"], help="the settings that the flags below change"
    )
    add(
        "--arch",
        choices=["resnet18", "resnet20", "resnet34", "resnet50", "resnet101", "mobilenetv2"],
        help="else that of --init, or resnet18",
    )
    add(
        "--attention",
        choices=["none", "half", "nam", "nam-spatial", "nam-both", "se", "bam", "cbam"],
        help="half: the branch times 1/2, what an inert gate does; else that of --init, or nam",
    )
    add("--size", type=int, required=True, help="side of the served input, px")
    length = added.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="epochs at the served size; else the recipe's")
    length.add_argument("--stages", type=stages, help="side:epochs of each stage instead, as 32:4,48:2,64:8")
    add("--init", type=Path, help="weights to start from, as nam train or nam convert wrote them")
    for name, options in _RECIPE_FLAGS.items():
        add("--" + name.replace("_", "-"), **options)
    add("--seed", type=int, default=0)
    add("--holdout", type=int, default=0, help="training images kept out and measured after every epoch")
    add("--labels", type=Path, help="a table class_id, en, zh for the card")
    add("--source", default="", help="where the data come from, and their terms, for the card")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; by default on CUDA alone")
    added = command(commands, evaluate, "how right and how sure weights are on a split, and their cost: one JSON line")
    added.add_argument("--weights", help="a weights file, or the name of shipped weights (else the default)")
    added.add_argument("--data", required=True, help="a folder with train/ and val/, or a torchvision dataset's name")
    added.add_argument("--split", default="val")
    added.add_argument(
        "--attention",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also what each block's attention is worth; takes long",
    )
    added.add_argument(
        "--faithfulness",
        action="store_true",
        help="also how faithful maps and channel weights are to what is computed; seconds an image",
    )
    added.add_argument("--images", type=positive, default=500, help="how many images of the split that asks for")


def _add_conversion(commands: Any) -> None:
    """What is not given is left to ``Conversion``."""
    added = command(commands, convert, "weights from elsewhere -> weights of ours, with channel NAM")
    add = partial(added.add_argument, default=argparse.SUPPRESS)
    added.add_argument("source", type=Path, metavar="SOURCE", help="a checkpoint (.pth, .pth.tar) or .safetensors")
    added.add_argument("-o", "--output", type=Path, required=True, help="the weights file to write")
    add(
        "--kind",
        choices=["auto", "official", "torchvision", "plain"],
        help="whose: the NAM paper's code, torchvision's names, or weights of ours without attention; else as its "
        "tensors say",
    )
    add(
        "--weighting",
        choices=["sum-one", "unit-mean"],
        help="of a warm start; unit-mean deviates from the paper; else sum-one",
    )
    add("--live-gradient", action="store_true", help="in further training; deviates from the paper")
    add("--scale", type=float, help="of a warm start: how far gates move; else so little that answers stay")
    add("--size", type=int, help="side of the served input, px; else 224 after a 7x7 stem, 32 after a 3x3 one")
    add("--crop", type=float, help="the served square by the image's shorter side; else 0.875 or 1")
    add("--mean", type=floats, help="channel means, three numbers; else ImageNet's or CIFAR-10's")
    add("--std", type=floats, help="channel deviations, three numbers; else ImageNet's or CIFAR-10's")
    add("--labels", type=Path, help="a table class_id, en, zh in the order of the classes; else ImageNet's, or numbers")
    add("--name", help="the model's name in its card; else the output's")


# The forms that nam export writes, and how their files' names end.
_ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}


def _add_export(commands: Any) -> None:
    added = command(commands, export, "a graph for another runtime: labels, gates and maps, for any batch")
    added.add_argument("--weights", help="a weights file, or the name of shipped weights (else the default)")
    added.add_argument("--format", choices=list(_ENDINGS), default="onnx", help="what the graph is written as")
    written = "the file to write, .onnx or .xml; OpenVINO's constants go beside it, as .bin"
    added.add_argument("-o", "--output", type=Path, required=True, help=written)


def _add_quantization(commands: Any) -> None:
    added = command(commands, quantize, "int8 for the CPU's engine, calibrated on images, for NAM_DTYPE=int8")
    added.add_argument("--weights", help="a weights file, or the name of shipped weights")
    added.add_argument("--data", required=True, help="a folder with train/, or the name of a torchvision dataset")
    added.add_argument("--images", type=positive, default=500, help="how many of its training images")


def _add_weights(commands: Any) -> None:
    words = "what is in weights files"
    group = commands.add_parser("weights", help=words, description=words)
    inner = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    added = command(inner, diff, "the channel weights of two weights files, block by block")
    added.add_argument("before", metavar="A", help="a weights file, or the name of shipped weights")
    added.add_argument("after", metavar="B", help="another, of the same blocks")
    added.add_argument(
        "-o", "--output", type=Path, help="also a picture, PNG: a dot a channel, its weight in A and in B"
    )
    added.add_argument("--json", action="store_true", help="one JSON line in place of the table")
