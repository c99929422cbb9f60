"""The README's curl examples, executed as they stand (but for the port) beside a real photo."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Process

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if "curl" in line
]
FIRST_BYTES = {".png": b"\x89PNG", ".npz": b"PK"}


def test_there_are_examples() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_works(command: str, serving: Process, photos: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(photos["cat"], tmp_path / "photo.jpg")
    line = command.replace("http://127.0.0.1:8000", serving.url)
    done = subprocess.run(["sh", "-ec", line], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    if kept := re.search(r"-o (\S+)", line):
        assert (tmp_path / kept[1]).read_bytes().startswith(FIRST_BYTES[Path(kept[1]).suffix])
        return
    answer = json.loads(done.stdout)
    assert "code" not in answer, answer
    for result in answer.get("results", [answer]):
        assert "predictions" in result or not {"image"} & set(result)
