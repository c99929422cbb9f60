"""Where weights files are found, and what tells one from another."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from nam.files import DEFAULT, SHIPPED, WeightsError, file_sha256, locate


def test_shipped_weights_are_found_by_their_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(DEFAULT) == SHIPPED / f"{DEFAULT}.safetensors"
    assert locate(DEFAULT).is_file()


def test_a_file_comes_before_the_shipped_weights_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT).touch()
    assert locate(DEFAULT) == Path(DEFAULT)


@pytest.mark.parametrize("path", ["nowhere", "/nowhere/at/all", ".", ""])
def test_where_there_is_neither_it_is_said(path: str) -> None:
    with pytest.raises(WeightsError, match="neither a weights file nor the name of shipped weights"):
        locate(path)


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(range(256)) * 5000)
    assert file_sha256(tmp_path / "w") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


def test_finding_weights_imports_no_torch() -> None:
    code = "import sys, nam.files; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
