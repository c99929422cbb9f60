"""Graphs on disk: made once for a weights file, by one process, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from app import graphs
from app.engine import EngineError
from app.graphs import FORM, checked, graph_of, seal
from nam.files import file_sha256
from tests.app.test_engines import ROOT, weights_file


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was exported, in place of exporting it."""
    graphs_made: list[Path] = []

    def export(_: Path, __: str, graph: Path) -> None:
        graph.touch()
        graphs_made.append(graph)

    monkeypatch.setattr(graphs, "_export", export)
    return graphs_made


def fail(*_: object) -> None:
    raise EngineError("no room")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_another_process_makes_the_graph_and_nothing_else_stays(tmp_path: Path) -> None:
    weights = Path(weights_file(tmp_path))
    sha256 = file_sha256(weights)
    graph = checked(graph_of(weights, sha256, tmp_path / "a" / "cache"))
    assert graph == tmp_path / "a" / "cache" / f"{sha256}-{FORM}.xml"
    assert left(graph.parent) == {graph.with_suffix(suffix).name for suffix in (".xml", ".bin", ".sha256")}
    assert all((graph.parent / name).stat().st_size for name in left(graph.parent))


def test_a_graph_is_made_once_and_then_found(tmp_path: Path, made: list[Path]) -> None:
    graph = graph_of(Path("w"), "abc", tmp_path)
    assert graph_of(Path("w"), "abc", tmp_path) == graph
    assert made == [graph]


def test_other_weights_have_a_graph_of_their_own(tmp_path: Path, made: list[Path]) -> None:
    assert made == [graph_of(Path("w"), sha256, tmp_path) for sha256 in ("abc", "abd")]
    assert len(set(made)) == 2


def test_a_graph_of_an_older_form_is_made_anew(
    tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = graph_of(Path("w"), "abc", tmp_path)
    monkeypatch.setattr(graphs, "FORM", FORM + 1)
    newer = graph_of(Path("w"), "abc", tmp_path)
    assert made == [older, newer]
    assert newer.name == f"abc-{FORM + 1}.xml"


def test_processes_that_start_together_export_once(tmp_path: Path) -> None:
    code = """if True:
        import pathlib, sys, time
        from app import graphs
        folder, me = pathlib.Path(sys.argv[1]), sys.argv[2]
        def export(weights, sha256, graph):
            (folder / f"exported by {me}").touch()
            time.sleep(0.3)
            graph.touch()
        graphs._export = export
        (folder / f"ready {me}").touch()
        while len(list(folder.glob("ready *"))) < 2:
            time.sleep(0.001)
        print(graphs.graph_of(pathlib.Path("w"), "abc", folder).name)"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*command, me], cwd=ROOT, stdout=subprocess.PIPE, text=True) for me in "ab"]
    assert [process.communicate(timeout=60)[0] for process in both] == [f"abc-{FORM}.xml\n"] * 2
    assert len(list(tmp_path.glob("exported by *"))) == 1


def test_an_export_that_fails_leaves_nothing_and_says_the_weights_own_words(tmp_path: Path) -> None:
    weights, cache = tmp_path / "w.safetensors", tmp_path / "cache"
    weights.write_bytes(b"no weights at all")
    with pytest.raises(EngineError, match=rf"^{weights} cannot be read as safetensors: "):
        graph_of(weights, file_sha256(weights), cache)
    assert left(cache) == set()


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("Traceback\nnam.files.WeightsError: w carries no card: 'card'\n", "w carries no card: 'card'"),
        ("Traceback\nMemoryError\n", "MemoryError"),
        ("Killed\n", "Killed"),
        ("", "no word of why"),
    ],
)
def test_however_an_export_fails_it_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr))
    with pytest.raises(EngineError) as caught:
        graph_of(Path("w"), "abc", tmp_path)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_after_a_failed_export_the_next_one_is_tried(
    tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(graphs, "_export", fail)
        with pytest.raises(EngineError, match="no room"):
            graph_of(Path("w"), "abc", tmp_path)
    assert [graph_of(Path("w"), "abc", tmp_path)] == made


def test_without_torch_a_missing_graph_is_said_to_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"abc-{FORM}.xml").touch()
    monkeypatch.setattr(graphs, "find_spec", lambda _: None)
    assert graph_of(Path("w"), "abc", tmp_path).is_file()
    with pytest.raises(EngineError, match="and torch, which exports it, is not installed here"):
        graph_of(Path("w"), "abd", tmp_path / "read-only")
    assert not (tmp_path / "read-only").exists()


def test_weights_that_are_changed_while_the_export_begins_are_refused(tmp_path: Path) -> None:
    weights = Path(weights_file(tmp_path))
    with pytest.raises(EngineError, match="it is another file"):
        graph_of(weights, "0" * 64, tmp_path / "cache")
    assert left(tmp_path / "cache") == set()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    for suffix in (".xml", ".bin"):
        (tmp_path / f"graph{suffix}").write_bytes(bytes(range(256)))
    seal(tmp_path / "graph.xml")
    return tmp_path / "graph.xml"


def test_a_graph_that_nobody_touched_is_used(sealed: Path) -> None:
    assert checked(sealed) == sealed


@pytest.mark.parametrize("suffix", [".xml", ".bin", ".sha256"])
@pytest.mark.parametrize("how", ["a bit", "a byte more", "nothing left", "gone"])
def test_a_graph_that_was_changed_is_not_used(sealed: Path, suffix: str, how: str) -> None:
    part = sealed.with_suffix(suffix)
    was = bytearray(part.read_bytes())
    if how == "gone":
        part.unlink()
    else:
        was[len(was) // 2] ^= 1
        part.write_bytes({"a bit": bytes(was), "a byte more": part.read_bytes() + b"0", "nothing left": b""}[how])
    with pytest.raises(EngineError, match="is not as it was made"):
        checked(sealed)
