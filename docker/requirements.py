"""What an image installs, one requirement a line: pyproject.toml's dependencies but for those named, and extras."""

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], without: list[str], extras: list[str]) -> list[str]:
    """Raises ValueError for a name that is no dependency: the image would be other than it says."""
    named = {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]: line for line in project["dependencies"]}
    if unknown := set(without) - set(named):
        raise ValueError(f"not among the dependencies: {', '.join(sorted(unknown))}")
    kept = [line for name, line in named.items() if name not in without]
    return kept + [line for extra in extras for line in project["optional-dependencies"][extra]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path, help="pyproject.toml")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--extra", nargs="+", default=[], metavar="NAME")
    arguments = parser.parse_args()
    project = tomllib.loads(arguments.project.read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements(project, arguments.without, arguments.extra)))
