"""Where weights files are found, and what tells one from another."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nam import files
from nam.files import DEFAULT, SHIPPED, SHIPPED_SHA256, WeightsError, file_sha256, locate, verified


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


def test_every_file_that_ships_has_its_hash_known() -> None:
    assert {file.stem: file_sha256(file) for file in SHIPPED.glob("*.safetensors")} == SHIPPED_SHA256
    assert verified(DEFAULT) == (SHIPPED / f"{DEFAULT}.safetensors", SHIPPED_SHA256[DEFAULT])


def test_another_file_under_a_shipped_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SHIPPED", tmp_path)
    (tmp_path / f"{DEFAULT}.safetensors").write_bytes(b"another")
    with pytest.raises(WeightsError, match="it is another file"):
        verified(DEFAULT)
    (tmp_path / "mine.safetensors").write_bytes(b"not shipped")
    with pytest.raises(WeightsError, match="nor the name of shipped weights"):
        verified("mine")


def test_a_file_in_the_working_folder_cannot_take_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT).write_bytes(b"another")
    with pytest.raises(WeightsError, match="it is another file"):
        verified(DEFAULT)


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_the_hash_that_is_asked_for_is_the_files(tmp_path: Path, case: Callable[[str], str]) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    assert verified(tmp_path / "w", case(right)) == (tmp_path / "w", right)
    with pytest.raises(WeightsError, match="it is another file"):
        verified(tmp_path / "w", "0" * 64)
