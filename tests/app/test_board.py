"""What admission counts, of one process and of several."""

from pathlib import Path

from app.board import Load, make_board


def test_a_process_alone_counts_for_itself() -> None:
    load = Load()
    load.requests += 2
    load.body_bytes += 10**12
    assert (load.all_requests, load.all_body_bytes) == (2, 10**12)
    assert (Load().requests, load.draining) == (0, False)


def test_processes_of_one_service_see_each_others_sums(tmp_path: Path) -> None:
    make_board(tmp_path / "board", 3)
    engine, one, other = (Load(tmp_path / "board", row) for row in range(3))
    one.requests, other.requests = 3, 4
    one.body_bytes, other.body_bytes = 5, 6
    assert [load.all_requests for load in (engine, one, other)] == [7, 7, 7]
    assert (one.requests, other.requests, one.all_body_bytes) == (3, 4, 11)


def test_the_pace_and_the_queue_are_the_engines_to_write_and_all_to_read(tmp_path: Path) -> None:
    make_board(tmp_path / "board", 2)
    engine, http = Load(tmp_path / "board", 0), Load(tmp_path / "board", 1)
    engine.image_s, engine.depth = 0.0125, 9
    assert (http.image_s, http.depth) == (0.0125, 9)
    engine.read_depth = lambda: 11
    assert (engine.depth, http.depth) == (11, 9)


def test_whoever_takes_a_dead_processs_row_begins_at_nothing(tmp_path: Path) -> None:
    make_board(tmp_path / "board", 2)
    dead, other = Load(tmp_path / "board", 0), Load(tmp_path / "board", 1)
    dead.requests, other.requests = 5, 1
    assert Load(tmp_path / "board", 0).all_requests == 1
