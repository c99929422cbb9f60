"""Who may import whom: the house's table, executed. Imports inside functions and under TYPE_CHECKING count too."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each file of app/ may import of app/ and nam/; a file that is not here may not exist.
APP: dict[str, set[str]] = {
    "__init__": {"nam"},
    "bench_command": {"flags", "load", "load_report", "processes"},
    "choice": {"engine", "graphs", "openvino_engine", "settings", "torch_engine"},
    "api": {"engine", "errors", "guards", "render", "schemas", "services", "serving", "uploads"},
    "array_engine": {"engine"},
    "batching": set(),
    "board": set(),
    "cli": {
        *("engine", "errors", "flags", "forward", "images", "logs", "model_commands", "render", "schemas", "server"),
        *("settings", "bench_command", "choice", "lane_process", "services", "workers", "nam"),
    },
    "docs": {"page"},
    "engine": set(),
    "errors": set(),
    "flags": set(),
    "forward": {"batching", "engine", "errors", "images", "thread_lane"},
    "graphs": {"engine", "nam.files"},
    "images": {"errors", "jpeg", "limits", "nam.geometry"},
    "jpeg": set(),
    "child_process": {"messages"},
    "cores": set(),
    "decode_process": {"errors", "images", "logs", "messages"},
    "decoders": {"child_process", "cores", "engine", "errors", "forward", "images", "messages", "settings"},
    "lane_process": {
        *("batching", "child_process", "choice", "cores", "decoders", "engine", "errors", "forward", "logs"),
        *("messages", "settings", "wire"),
    },
    "http_answer": set(),
    "limits": {"errors"},
    "load": {"http_answer", "load_report"},
    "load_report": {"http_answer"},
    "logs": set(),
    "messages": set(),
    "guards": {"errors", "services", "trace"},
    "main": {"api", "board", "docs", "errors", "guards", "middleware", "oip", "page", "services", "settings"},
    "metrics": {"batching", "board", "processes"},
    "middleware": {"errors", "guards", "services", "trace"},
    "model_commands": {"flags", "graphs", "settings", "nam"},
    "oip": {"engine", "errors", "guards", "oip_schemas", "oip_tensors", "schemas", "services", "serving", "uploads"},
    "oip_schemas": {"errors"},
    "oip_tensors": {"errors", "forward", "images", "oip_schemas", "uploads"},
    "openvino_engine": {"array_engine", "cores", "engine", "graphs", "nam.files"},
    "schemas": {"engine", "forward"},
    "render": {"engine", "forward", "images", "schemas", "nam.figure"},
    "page": {"errors"},
    "protocol": {"batching", "errors", "forward", "guards", "schemas", "services", "serving", "trace", "uploads"},
    "ray_serve": {"guards", "lane_process", "logs", "main", "services", "settings", "nam.files"},
    "remote": {"batching", "engine", "errors", "forward", "messages", "services", "wire"},
    "server": {"board", "main", "protocol", "services", "settings"},
    "services": {
        *("batching", "board", "cores", "decoders", "engine", "errors", "forward", "metrics", "settings", "spans"),
        "tracing",
    },
    "serving": {"batching", "engine", "errors", "forward", "images", "services", "trace"},
    "processes": set(),
    "settings": set(),
    "spans": {"batching", "forward", "settings", "trace"},
    "trace": {"batching", "forward"},
    "tracing": {"settings", "spans"},
    "thread_lane": {"batching"},
    "torch_engine": {"array_engine", "cores", "engine", "nam"},
    "uploads": {"errors"},
    "wire": {"engine", "errors", "forward", "images", "messages"},
    "workers": {
        *("board", "engine", "lane_process", "logs", "metrics", "remote", "server", "services", "settings"),
    },
}

# Packages from elsewhere that only some files may import.
ONLY: dict[str, set[str]] = {
    "openvino": {"openvino_engine"},
    "simplejpeg": {"jpeg"},
    "torch": {"torch_engine"},
    "torchvision": set(),
    "opentelemetry": {"spans"},
    "PIL": {"bench_command", "images", "jpeg", "cli"},
    "fastapi": {"api", "docs", "main", "oip", "page", "services"},
    "pydantic": {"oip_schemas", "ray_serve", "schemas", "settings"},
    "ray": {"ray_serve"},
    "uvicorn": {"protocol", "server"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"{module}.{alias.name}" if module in ("app", "nam") else module for alias in node.names}
    return found


def within(path: Path, room: str) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{room}.")}


FILES = sorted((ROOT / "app").glob("*.py"))


def test_the_table_names_every_file() -> None:
    assert {path.stem for path in FILES} == set(APP)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_app_imports_what_it_may(path: Path) -> None:
    allowed = APP[path.stem]
    assert within(path, "app") <= allowed
    for name in imports(path):
        if name.split(".")[0] == "nam":
            assert "nam" in allowed or name in allowed, name
        assert path.stem in ONLY.get(name.split(".")[0], {path.stem}), name


def test_the_batcher_knows_the_standard_library_alone() -> None:
    roots = {name.split(".")[0] for name in imports(ROOT / "app" / "batching.py")}
    assert roots <= sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted((ROOT / "nam").glob("*.py")), ids=lambda path: path.stem)
def test_nam_knows_nothing_of_requests(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"app", "fastapi", "starlette", "pydantic", "uvicorn"}


def test_the_geometry_and_the_figure_are_free_of_torch() -> None:
    assert not imports(ROOT / "nam" / "geometry.py")
    roots = {name.partition(".")[0] for name in imports(ROOT / "nam" / "figure.py")}
    assert roots - {"numpy", "PIL"} <= sys.stdlib_module_names


@pytest.mark.parametrize("room", ["app", "nam"])
def test_there_are_no_import_cycles(room: str) -> None:
    graph = {path.stem: within(path, room) for path in (ROOT / room).glob("*.py")}
    while leaves := {name for name, needs in graph.items() if not needs & set(graph)}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert graph == {}


def test_only_settings_reads_the_environment() -> None:
    readers = [
        path.name
        for path in [*FILES, *(ROOT / "nam").glob("*.py")]
        if "os.environ" in path.read_text() or "getenv" in path.read_text()
    ]
    assert readers == ["settings.py"]
