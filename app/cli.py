"""The command ``nam``. Whatever needs torch is imported by the command that needs it, so that help is quick."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app import logs
from app.bench_command import add_bench_command
from app.choice import load_engine
from app.engine import AttentionAsk, Engine, EngineError
from app.errors import ServiceError
from app.flags import command, positive
from app.forward import Done, Forward, Job, Run, timed_decode
from app.images import Picture
from app.model_commands import add_model_commands
from app.render import FORMS, PHOTOS, ask_for, render
from app.schemas import predict_answer
from app.settings import Settings, unknown_variables


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code. What is the caller's fault ends in one line on stderr and code 2."""
    arguments = _parser().parse_args(argv)
    for name in unknown_variables():
        print(f"nam: {name} is not a setting; nam settings lists them", file=sys.stderr)
    try:
        code: int = arguments.run(arguments)
        return code
    except ModuleNotFoundError as error:
        print(f"nam: this needs {error.name}, which is not installed here", file=sys.stderr)
        return 2
    except (EngineError, ServiceError, ImportError, OSError, ValueError) as error:
        print(f"nam: {error}", file=sys.stderr)
        return 2


def serve(arguments: argparse.Namespace) -> int:
    _open_standard_files()
    settings = _settings(arguments)
    from app.lane_process import open_run
    from app.server import FAILED, serve
    from app.services import lanes_here

    logs.configure(settings.log_level, settings.log_format)
    refusals: list[EngineError] = []

    def opened(settings: Settings, on_forward: Callable[[float], None]) -> Run:
        try:
            return open_run(settings, on_forward)
        except EngineError as error:
            refusals.append(error)
            raise

    if settings.workers > 1:
        from app.workers import supervise

        return supervise(settings)
    try:
        serve(settings, lanes_here(opened))
    except SystemExit as ended:
        if refusals:
            raise refusals[0] from None
        if ended.code == FAILED:
            raise
        raise OSError(f"no service on {settings.host}:{settings.port}; the lines above say why") from None
    return 0


def _open_standard_files() -> None:
    """Where the service was started without some of them: what it opens itself would take their numbers, libuv aborts
    when it closes one of those, and C writes its errors to them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def predict(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    engine = load_engine(settings)
    failed = False
    for path in _progress(arguments.images, "image"):
        try:
            done = _answer(engine, path.read_bytes(), settings, arguments.top_k)
        except (ServiceError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        content = predict_answer(engine.card, done, arguments.lang)
        print(
            json.dumps({"file": str(path), **content}, ensure_ascii=False) if arguments.json else _table(path, content)
        )
    return 1 if failed else 0


def attention(arguments: argparse.Namespace) -> int:
    output, form = _destination(arguments)
    settings = _settings(arguments)
    engine = load_engine(settings)
    data = arguments.image.read_bytes()
    ask = AttentionAsk(
        frozenset(block.name for block in engine.card.blocks),
        effects=arguments.effects,
        channel_effects=arguments.channel_effects,
        methods=frozenset(_known(engine.card.methods, arguments.method)),
    )
    done = _answer(engine, data, settings, 5, ask_for(form, ask))
    pieces = render(form, engine.card, done, _photo(form, engine, data, settings), arguments.lang)
    if output is None:
        sys.stdout.buffer.writelines(pieces)
        return 0
    output.write_bytes(b"".join(pieces))
    print(_table(arguments.image, predict_answer(engine.card, done, arguments.lang)))
    print(f"wrote {output}", file=sys.stderr)
    return 0


def _photo(form: str, engine: Engine, data: bytes, settings: Settings) -> Picture | None:
    if (side := PHOTOS.get(form)) is None:
        return None
    return timed_decode(data, size=side, crop=engine.card.crop, max_pixels=settings.max_pixels).picture


def _destination(arguments: argparse.Namespace) -> tuple[Path | None, str]:
    """A file, or None for stdout, and the form. Raises ValueError where neither says which form."""
    output: Path | None = arguments.output
    ending = "" if output is None else output.suffix.removeprefix(".").lower()
    form = arguments.format or (ending or "png")
    if form not in FORMS:
        raise ValueError(
            f"{output}: the name ends in {', '.join(f'.{form}' for form in FORMS)}, or --format says which"
        )
    if output is None and sys.stdout.isatty():
        return Path(f"{arguments.image.stem}.attention.{form}"), form
    return (None if output == Path("-") else output), form


def _known(methods: Sequence[str], asked: list[str]) -> list[str]:
    if not set(asked) <= set(methods):
        raise ValueError(f"--method is one of {', '.join(methods)}" if methods else "the network has no NAM blocks")
    return asked


def check(arguments: argparse.Namespace) -> int:
    """Load, warm up, decode and answer one image made here: exit code 0 says that a service would answer."""
    from PIL import Image

    settings = _settings(arguments)
    engine = load_engine(settings)
    made = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(made, "JPEG")
    answer = _answer(engine, made.getvalue(), settings, 1).answer
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


def _answer(engine: Engine, data: bytes, settings: Settings, top_k: int, ask: AttentionAsk | None = None) -> Done:
    """One image, decoded and run as the service does. Raises a ServiceError."""
    (outcome,) = Forward(engine, settings.max_pixels, lambda _: None)([Job(data, top_k, ask)])
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def _table(path: Path, content: dict[str, Any]) -> str:
    rows = [f"  {p['probability']:6.1%}  {p['label']}  ({p['class_id']})" for p in content["predictions"]]
    return "\n".join([str(path), *rows, *(f"  note: {note}" for note in content.get("notes", []))])


def _progress(items: list[Path], unit: str) -> Any:
    """A bar on stderr where there is more than one thing to wait for and someone who looks."""
    from tqdm import tqdm

    return tqdm(items, unit=unit, disable=None if len(items) > 1 else True)


def _settings(arguments: argparse.Namespace) -> Settings:
    """The environment's settings, and above them the flags that were given."""
    given = {name: getattr(arguments, name, None) for name in ("host", "port", "workers", "weights", "device")}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nam", description="Image classification that explains itself.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_service(commands)
    _add_answers(commands)
    add_model_commands(commands)
    add_bench_command(commands)
    return parser


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", help="a weights file, or the name of shipped weights (else NAM_WEIGHTS)")
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], help="where the network lives (else NAM_DEVICE)")


def _add_service(commands: Any) -> None:
    added = command(commands, serve, "answer over HTTP; every setting is listed by nam settings")
    added.add_argument("--host", help="address to listen on (else NAM_HOST, 127.0.0.1)")
    added.add_argument("--port", type=int, help="port to listen on (else NAM_PORT, 8000)")
    added.add_argument("--workers", type=positive, help="processes that speak HTTP (else NAM_WORKERS, 1)")
    _add_engine(added)
    _add_engine(command(commands, check, "load, warm up and answer one image; exit code 0 if all is well"))
    command(commands, settings, "every setting of the service, its value, its default and what it does")


def _add_answers(commands: Any) -> None:
    added = command(commands, predict, "the best labels of images")
    added.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    added.add_argument("--top-k", type=positive, default=5, help="how many labels")
    added.add_argument("--json", action="store_true", help="one JSON line an image")
    added.add_argument("--lang", choices=["en", "zh"], default="en", help="the labels' language")
    _add_engine(added)
    added = command(commands, attention, "the NAM weight maps of an image, as a picture or as numbers")
    added.add_argument("image", type=Path, metavar="IMAGE")
    written = "a file; - is stdout; without it stdout too, or IMAGE.attention.png here where stdout is a terminal"
    added.add_argument("-o", "--output", type=Path, help=written)
    added.add_argument("--format", choices=list(FORMS), help="else by the ending of the output's name, else png")
    added.add_argument("--effects", action="store_true", help="also what each block's gate does for the top label")
    added.add_argument(
        "--channel-effects", action="store_true", help="also what the strongest channels' gates do for it"
    )
    added.add_argument("--method", action="append", default=[], help="a further kind of map, such as product")
    added.add_argument("--lang", choices=["en", "zh"], default="en", help="the labels' language")
    _add_engine(added)
