"""How a command of ``nam`` is declared, and the types of its flags."""

import argparse
from collections.abc import Callable
from typing import Any


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def command(commands: Any, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        run.__name__, help=help, description=help, formatter_class=Formatter
    )
    added.set_defaults(run=run)
    return added


def stages(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(side), int(epochs)) for side, epochs in (stage.split(":") for stage in text.split(",")))


def floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return int(text)
