"""The wheel, as those without a checkout have it: in an environment of its own, used from an empty directory."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from nam.files import DEFAULT
from tests.e2e import conftest
from tests.e2e.test_serve import ESPRESSO

ROOT = Path(__file__).parents[2]
READMES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]


def ran(*command: object, **options: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: object) -> None:
    ran(sys.executable, "-m", "pip", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: setuptools leaves its work beside the sources, and takes it up again."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("app", "nam", "weights"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source)
    (file,) = built.iterdir()
    return file


@dataclass
class Installed:
    """An environment with the wheel: its programs, and a directory with a photo in it and nothing else."""

    programs: Path
    folder: Path

    def run(self, program: str, *arguments: object) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("NAM_")}
        environment["NAM_CACHE_DIR"] = str(self.programs.parent / "cache")
        return ran(self.programs / program, *arguments, cwd=self.folder, env=environment)


@pytest.fixture(scope="module")
def installed(wheel: Path, photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What the wheel needs is read from the environment that runs the tests, its editable install left out."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("empty")
    venv.create(home, symlinks=True)
    pip("--python", home / "bin" / "python", "install", "--no-index", "--no-deps", wheel)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "rest.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    shutil.copy(photos["espresso"], folder / "photo.jpg")
    return Installed(home / "bin", folder)


def test_the_wheel_has_the_packages_the_page_and_the_weights_and_nothing_else(wheel: Path) -> None:
    got = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for room in ("app", "nam") for path in (ROOT / room).rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {"app/py.typed", "nam/py.typed", "app/web/index.html", "app/web/examples/cat.jpg"} <= wanted
    assert got == wanted | {f"nam/shipped/{DEFAULT}.safetensors", "nam/shipped/labels/tiny-imagenet-200.tsv"}


def test_the_readmes_say_how_large_it_is(wheel: Path) -> None:
    assert all(f"{wheel.stat().st_size / 1e6:.0f} MB" in text for text in READMES)


def test_it_is_the_wheel_that_is_run(installed: Installed) -> None:
    said = installed.run("python", "-c", "import app, nam; print(app.__file__, nam.__file__)").split()
    assert all(Path(file).is_relative_to(installed.programs.parent) for file in said)


def test_predict_works_in_an_empty_directory(installed: Installed) -> None:
    answer = json.loads(installed.run("nam", "predict", "--json", "photo.jpg"))
    assert answer["model"] == DEFAULT
    assert answer["predictions"][0]["class_id"] == ESPRESSO


def test_the_readmes_python_works(installed: Installed) -> None:
    (english,), (chinese,) = (re.findall(r"```python\n(.*?)```", text, re.S) for text in READMES)
    assert english == chinese
    assert "espresso" in installed.run("python", "-c", english)


def test_it_serves_the_page_and_its_examples(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(installed.folder)
    monkeypatch.setattr(conftest, "NAM", installed.programs / "nam")
    running = conftest.start(tmp_path, NAM_CACHE_DIR=str(installed.programs.parent / "cache"))
    for path in ("/", "/web/app.js", "/web/examples/cat.jpg"):
        assert httpx2.get(running.url + path, timeout=60).status_code == 200, path
    running.process.terminate()
    assert running.process.wait(60) == 0
