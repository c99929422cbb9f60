"""The command ``nam``. Whatever needs torch is imported by the command that needs it, so that help is quick."""

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import logs
from app.engine import Ask, AttentionAsk, Engine, EngineError
from app.errors import ServiceError
from app.images import decode
from app.schemas import Language, attention_answer, predict_answer, to_json
from app.settings import Settings, unknown_variables

if TYPE_CHECKING:
    from nam.recipes import TrainConfig


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code. What is the caller's fault ends in one line on stderr and code 2."""
    arguments = _parser().parse_args(argv)
    for name in unknown_variables():
        print(f"nam: {name} is not a setting; nam settings lists them", file=sys.stderr)
    try:
        code: int = arguments.run(arguments)
        return code
    except (EngineError, ServiceError, ImportError, OSError, ValueError) as error:
        print(f"nam: {error}", file=sys.stderr)
        return 2


def load_engine(settings: Settings) -> Engine:
    """The engine that the settings ask for. Raises EngineError."""
    from app.torch_engine import TorchEngine

    return TorchEngine(
        settings.weights,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        max_batch=settings.max_batch,
        lanes=settings.lanes,
    )


def serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    from app.server import serve

    logs.configure(settings.log_level)
    refusals: list[EngineError] = []

    def load(settings: Settings) -> Engine:
        try:
            return load_engine(settings)
        except EngineError as error:
            refusals.append(error)
            raise

    try:
        serve(settings, load)
    except SystemExit:
        if not refusals:
            raise
        raise refusals[0] from None
    return 0


def predict(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    engine = load_engine(settings)
    failed = False
    for path in _progress(arguments.images, "image"):
        try:
            picture = _decode(engine, path.read_bytes(), settings)
            answer = engine([Ask(picture.pixels, arguments.top_k)])[0]
        except (ServiceError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        content = predict_answer(engine.card, picture, answer, arguments.lang)
        print(
            json.dumps({"file": str(path), **content}, ensure_ascii=False) if arguments.json else _table(path, content)
        )
    return 1 if failed else 0


def attention(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    engine = load_engine(settings)
    data = arguments.image.read_bytes()
    picture = _decode(engine, data, settings)
    ask = AttentionAsk(frozenset(block.name for block in engine.card.blocks), effects=arguments.effects)
    answer = engine([Ask(picture.pixels, 5, ask)])[0]
    # The picture's font has no Chinese.
    written: Language = "en" if arguments.output.suffix == ".png" else arguments.lang
    content = attention_answer(engine.card, picture, answer, written)
    arguments.output.write_bytes(_WRITERS[arguments.output.suffix](content, data, engine, settings))
    print(_table(arguments.image, predict_answer(engine.card, picture, answer, arguments.lang)))
    print(f"wrote {arguments.output}", file=sys.stderr)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Load, warm up, decode and answer one image made here: exit code 0 says that a service would answer."""
    from PIL import Image

    settings = _settings(arguments)
    engine = load_engine(settings)
    made = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(made, "JPEG")
    picture = _decode(engine, made.getvalue(), settings)
    answer = engine([Ask(picture.pixels, 1)])[0]
    facts = {key: engine.card.facts[key] for key in ("device", "dtype", "engine", "reason")}
    probability = float(answer.probabilities[0])
    print(
        json.dumps({"ok": True, "model": engine.card.name, "sha256": engine.card.sha256, **facts, "top1": probability})
    )
    return 0


def settings(arguments: argparse.Namespace) -> int:
    current = Settings()
    for name, field in Settings.model_fields.items():
        print(f"NAM_{name.upper()}={getattr(current, name)}\n    {field.description} Default: {field.default}")
    return 0


def train(arguments: argparse.Namespace) -> int:
    from nam.train import train as run

    # Of torchrun's processes the first alone has something to say.
    if result := run(_train_config(arguments)):
        print(json.dumps(result))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    from nam import weights
    from nam.build import choose_device, place
    from nam.data import load_split
    from nam.evaluate import cost
    from nam.evaluate import evaluate as run

    model, card = weights.load(arguments.weights or weights.DEFAULT)
    split = load_split(arguments.data, arguments.split, card.config.size, crop=card.crop)
    split, how = split.labelled([label.id for label in card.labels], [label.en for label in card.labels])
    facts = {"weights": card.name, "sha256": card.sha256, "notes": card.notes, "data": arguments.data}
    facts |= {"split": arguments.split, "classes_by": how}
    line: dict[str, Any] = facts | run(place(model, choose_device()), split) | cost(model, card.config.size)
    if arguments.attention:
        from nam.alive import liveness

        line["attention"] = liveness(model, split)
    print(json.dumps(line))
    return 0


def convert(arguments: argparse.Namespace) -> int:
    from nam.convert import Conversion
    from nam.convert import convert as run

    known = {f.name for f in dataclasses.fields(Conversion)}
    print(json.dumps(run(Conversion(**{name: value for name, value in vars(arguments).items() if name in known}))))
    return 0


def _decode(engine: Engine, data: bytes, settings: Settings, size: int = 0) -> Any:
    return decode(data, size=size or engine.card.size, crop=engine.card.crop, max_pixels=settings.max_pixels)


def _as_json(content: dict[str, Any], data: bytes, engine: Engine, settings: Settings) -> bytes:
    return to_json(content)


def _as_png(content: dict[str, Any], data: bytes, engine: Engine, settings: Settings) -> bytes:
    from nam.figure import PHOTO, draw

    return draw(_decode(engine, data, settings, PHOTO).pixels, content)


_WRITERS: dict[str, Callable[[dict[str, Any], bytes, Engine, Settings], bytes]] = {".json": _as_json, ".png": _as_png}


def _table(path: Path, content: dict[str, Any]) -> str:
    rows = [f"  {p['probability']:6.1%}  {p['label']}  ({p['class_id']})" for p in content["predictions"]]
    return "\n".join([str(path), *rows, *(f"  note: {note}" for note in content.get("notes", []))])


def _progress(items: list[Path], unit: str) -> Any:
    """A bar on stderr where there is more than one thing to wait for and someone who looks."""
    from tqdm import tqdm

    return tqdm(items, unit=unit, disable=None if len(items) > 1 else True)


def _settings(arguments: argparse.Namespace) -> Settings:
    """The environment's settings, and above them the flags that were given."""
    given = {name: getattr(arguments, name, None) for name in ("host", "port", "weights", "device")}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _train_config(arguments: argparse.Namespace) -> "TrainConfig":
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


def _stages(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(side), int(epochs)) for side, epochs in (stage.split(":") for stage in text.split(",")))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return int(text)


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _WRITERS:
        raise argparse.ArgumentTypeError(f"{text}: the name ends in {' or '.join(_WRITERS)}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nam", description="Image classification that explains itself.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_service(commands)
    _add_answers(commands)
    _add_training(commands)
    _add_conversion(commands)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def _command(commands: Any, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        run.__name__, help=help, description=help, formatter_class=_Formatter
    )
    command.set_defaults(run=run)
    return command


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", help="a weights file, or the name of shipped weights (else NAM_WEIGHTS)")
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], help="where the network lives (else NAM_DEVICE)")


def _add_service(commands: Any) -> None:
    command = _command(commands, serve, "answer over HTTP; every setting is listed by nam settings")
    command.add_argument("--host", help="address to listen on (else NAM_HOST, 127.0.0.1)")
    command.add_argument("--port", type=int, help="port to listen on (else NAM_PORT, 8000)")
    _add_engine(command)
    _add_engine(_command(commands, check, "load, warm up and answer one image; exit code 0 if all is well"))
    _command(commands, settings, "every setting of the service, its value, its default and what it does")


def _add_answers(commands: Any) -> None:
    command = _command(commands, predict, "the best labels of images")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    command.add_argument("--top-k", type=_positive, default=5, help="how many labels")
    command.add_argument("--json", action="store_true", help="one JSON line an image")
    command.add_argument("--lang", choices=["en", "zh"], default="en", help="the labels' language")
    _add_engine(command)
    command = _command(commands, attention, "the NAM weight maps of an image, as a picture or as numbers")
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("-o", "--output", type=_output, required=True, help="a file that ends in .png or .json")
    command.add_argument("--effects", action="store_true", help="also what each block's gate does for the top label")
    command.add_argument("--lang", choices=["en", "zh"], default="en", help="the labels' language")
    _add_engine(command)


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
    "mean": {"type": _floats, "help": "channel means, three numbers; else the data's own"},
    "std": {"type": _floats, "help": "channel deviations, three numbers; else the data's own"},
    "batch": {"type": int, "help": "images a step, over all processes"},
    "lr": {"type": float, "help": "the highest learning rate"},
    "schedule": {"choices": ["cosine", "steps"], "help": "steps: a fifth from 30, 60 and 80 %% of the run on"},
    "warmup_epochs": {"type": float},
    "nesterov": {"action": argparse.BooleanOptionalAction},
    "weight_decay": {"type": float},
    "label_smoothing": {"type": float},
    "crop": {"choices": ["resized", "padded"], "help": "a random part resized, or padded by an eighth and cropped"},
    "crop_scale": {"type": _floats, "help": "least and largest share of the area in a resized crop"},
    "trivial_augment": {"action": argparse.BooleanOptionalAction, "help": "TrivialAugment"},
    "erasing": {"type": float, "help": "probability of random erasing"},
    "cutmix": {"type": float, "help": "alpha of CutMix; 0: none"},
    "mixup": {"type": float, "help": "alpha of mixup; 0: none"},
    "ema": {"type": float, "help": "decay of the averaged weights, a step; 0: no average"},
}


def _add_training(commands: Any) -> None:
    command = _command(commands, train, "train a network; the same command resumes an interrupted run")
    add = command.add_argument
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
    length = command.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="epochs at the served size; else the recipe's")
    length.add_argument("--stages", type=_stages, help="side:epochs of each stage instead, as 32:4,48:2,64:8")
    add("--init", type=Path, help="weights to start from, as nam train or nam convert wrote them")
    for name, options in _RECIPE_FLAGS.items():
        add("--" + name.replace("_", "-"), **options)
    add("--seed", type=int, default=0)
    add("--holdout", type=int, default=0, help="training images kept out and measured after every epoch")
    add("--labels", type=Path, help="a table class_id, en, zh for the card")
    add("--source", default="", help="where the data come from, and their terms, for the card")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; by default on CUDA alone")
    command = _command(
        commands, evaluate, "how right and how sure weights are on a split, and their cost: one JSON line"
    )
    command.add_argument("--weights", help="a weights file, or the name of shipped weights (else the default)")
    command.add_argument("--data", required=True, help="a folder with train/ and val/, or a torchvision dataset's name")
    command.add_argument("--split", default="val")
    command.add_argument(
        "--attention",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also what each block's attention is worth; takes long",
    )


def _add_conversion(commands: Any) -> None:
    """What is not given is left to ``Conversion``."""
    command = _command(commands, convert, "weights from elsewhere -> weights of ours, with channel NAM")
    add = partial(command.add_argument, default=argparse.SUPPRESS)
    command.add_argument("source", type=Path, metavar="SOURCE", help="a checkpoint (.pth, .pth.tar) or .safetensors")
    command.add_argument("-o", "--output", type=Path, required=True, help="the weights file to write")
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
    add("--mean", type=_floats, help="channel means, three numbers; else ImageNet's or CIFAR-10's")
    add("--std", type=_floats, help="channel deviations, three numbers; else ImageNet's or CIFAR-10's")
    add("--labels", type=Path, help="a table class_id, en, zh in the order of the classes; else ImageNet's, or numbers")
    add("--name", help="the model's name in its card; else the output's")
