"""Documents that fail: what the README says there is, is there, and what is there is in the README."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from app import errors
from app.images import ACCEPTED
from app.settings import Settings
from tests.fakes import service

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
BOTH = pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def rows(path: Path) -> list[list[str]]:
    """Every table row, as its cells."""
    return [
        [cell.strip().replace("\\|", "|") for cell in line.strip("|").split("|")]
        for line in text(path).splitlines()
        if line.startswith("|")
    ]


def tree(path: Path) -> list[str]:
    """The paths of the tree, in order: two spaces a level."""
    (block,) = re.findall(r"```text\n(.*?)```", text(path), re.S)
    paths, above = [], []
    for line in block.splitlines():
        name, level = line.split()[0], (len(line) - len(line.lstrip())) // 2
        above = [*above[:level], name]
        paths.append("".join(above))
    return paths


@BOTH
def test_the_tree_is_the_tree_on_disk(path: Path) -> None:
    told = tree(path)
    assert all((ROOT / name).exists() for name in told), [name for name in told if not (ROOT / name).exists()]
    for room in ("app", "nam"):
        files = {
            f"{room}/{file.name}" for file in (ROOT / room).iterdir() if file.suffix == ".py" and file.stat().st_size
        }
        assert {name for name in told if name.startswith(f"{room}/") and name.endswith(".py")} == files
    hidden = {".git", ".venv", ".venv-peers", "runs", "build"}
    top = {
        file.name
        for file in ROOT.iterdir()
        if file.name not in hidden and not file.name.endswith((".egg-info", "_cache"))
    }
    assert {name.rstrip("/").split("/")[0] for name in told} == top


@BOTH
def test_every_setting_is_told_with_its_default(path: Path) -> None:
    told = {row[0]: row[1] for row in rows(path) if row[0].startswith("`NAM_")}
    there = {
        f"`NAM_{name.upper()}`": "" if field.default in (None, "", SecretStr("")) else f"`{field.default}`"
        for name, field in Settings.model_fields.items()
    }
    assert told == there


def test_the_settings_table_says_what_the_settings_say() -> None:
    told = {row[0]: row[2] for row in rows(ENGLISH) if row[0].startswith("`NAM_")}
    assert told == {f"`NAM_{name.upper()}`": field.description for name, field in Settings.model_fields.items()}


@BOTH
def test_every_error_is_told_with_its_status(path: Path) -> None:
    told = {(row[0], row[1]) for row in rows(path) if re.fullmatch(r"\d{3}", row[0])}
    assert told == {(str(error.status), f"`{error.code}`") for error in errors.ERRORS}


@BOTH
def test_every_route_is_told(path: Path) -> None:
    told = {tuple(row[0].strip("`").split()) for row in rows(path) if re.match(r"`(GET|POST) ", row[0])}
    with service() as serving:
        paths = serving.client.get("/openapi.json").json()["paths"]
    there = {(method.upper(), route) for route, methods in paths.items() for method in methods}
    assert told == there | {("GET", "/"), ("GET", "/docs")}


@BOTH
def test_every_metric_is_told(path: Path) -> None:
    told = set(re.findall(r"`((?:nam|process)_\w+)`", text(path)))
    with service() as serving:
        assert told == set(re.findall(r"^# TYPE (\S+)", serving.client.get("/metrics").text, re.M))


@BOTH
def test_the_accepted_formats_are_told(path: Path) -> None:
    (row,) = [row for row in rows(path) if "TIFF" in row[1] and "GIF" in row[1]]
    assert all(name.lower() in row[1].lower() for name in ACCEPTED)


@BOTH
def test_every_promise_names_its_test_and_its_settings(path: Path) -> None:
    promises = [row for row in rows(path) if row[-1].startswith("`tests/") and len(row) == 3]
    assert len(promises) >= 20
    for _, limit, told in promises:
        file, name = told.strip("`").split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), told
        assert set(re.findall(r"NAM_(\w+)", limit)) <= {name.upper() for name in Settings.model_fields}


def test_both_languages_make_the_same_promises() -> None:
    english, chinese = ([row[-1] for row in rows(path) if row[-1].startswith("`tests/")] for path in (ENGLISH, CHINESE))
    assert english == chinese


def test_both_languages_show_the_same_examples() -> None:
    english, chinese = (re.findall(r"```(?:sh|json)\n(.*?)```", text(path), re.S) for path in (ENGLISH, CHINESE))

    def commands(blocks: list[str]) -> list[str]:
        return [re.sub(r"\s+# .*", "", line) for block in blocks for line in block.splitlines()]

    assert commands(english) == commands(chinese)


@BOTH
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)\)", text(path)):
        assert target.startswith("https://") or (ROOT / target).exists(), target
