"""The rounds of tests/bench/http.py as a summary, and the summary as Markdown.

    python -m tests.bench.tables tests/bench/results/http.json     (prints it again)

A spread is [median, least, most] over the rounds. The ceiling is the loop whose median is the best; ratios to it and
differences from it are taken within each round.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Found = dict[str, Any]
Spread = list[float] | None


def spread(values: Iterable[float | None]) -> Spread:
    """None where no round has a figure."""
    there = [value for value in values if value is not None]
    return [statistics.median(there), min(there), max(there)] if there else None


def summary(rounds: list[Found]) -> Found:
    loops = {name: spread(r["ceiling"]["loops"][name]["images_per_s"] for r in rounds) for name in _loops(rounds)}
    best = max(loops, key=lambda name: (loops[name] or [0.0])[0])
    alone = min(rounds[0]["ceiling"]["alone_ms"], key=lambda name: _alone(rounds, name)[0])
    servers = [name for name in rounds[0] if name != "ceiling"]
    return {
        "ceiling": {
            "best": best,
            "loops": loops,
            "core_ms": spread(r["ceiling"]["loops"][best]["core_ms"] for r in rounds),
            "decode_core_ms": spread(r["ceiling"]["decode_core_ms"] for r in rounds),
            "forward_core_ms": {
                batch: spread(r["ceiling"]["forward_core_ms"][batch] for r in rounds)
                for batch in rounds[0]["ceiling"]["forward_core_ms"]
            },
            "alone_ms": {name: _alone(rounds, name) for name in rounds[0]["ceiling"]["alone_ms"]},
            "best_alone": alone,
        },
        "servers": {name: _server(rounds, name, best, alone) for name in sorted(servers, key=lambda n: n != "nam")},
        "beside": {name: _beside(rounds, name) for name in servers if name != "nam" and "nam" in servers},
    }


def _beside(rounds: list[Found], name: str) -> Found:
    """Ours over another's, within a round: images/s; and the other's p99 over ours. Above 1 ours is ahead."""
    pairs = [(r["nam"]["callers"], r[name]["callers"]) for r in rounds]
    return {
        count: {
            "throughput": spread(
                ours[count]["throughput_per_s"] / other[count]["throughput_per_s"] for ours, other in pairs
            ),
            "p99": spread(other[count]["p99_ms"] / ours[count]["p99_ms"] for ours, other in pairs),
        }
        for count in rounds[0][name]["callers"]
        if count in rounds[0]["nam"]["callers"]
    }


def _loops(rounds: list[Found]) -> list[str]:
    return list(rounds[0]["ceiling"]["loops"])


def _alone(rounds: list[Found], name: str) -> list[float]:
    found = spread(r["ceiling"]["alone_ms"][name] for r in rounds)
    assert found is not None
    return found


def _server(rounds: list[Found], name: str, best: str, alone: str) -> Found:
    turns = [(r["ceiling"]["loops"][best], r["ceiling"]["alone_ms"][alone], r[name]) for r in rounds]
    found: Found = {
        "ready_s": spread(turn["ready_s"] for _, _, turn in turns),
        "pss_mb": spread(max(c["server_pss_mb"] for c in turn["callers"].values()) for _, _, turn in turns),
        "callers": {count: _callers(turns, count) for count in turns[0][2]["callers"]},
    }
    lone = [(alone_ms, turn["callers"]["1"]["p50_ms"]) for _, alone_ms, turn in turns if "1" in turn["callers"]]
    found["p50_added_ms"] = spread(p50 - alone_ms for alone_ms, p50 in lone if p50 is not None)
    if "attention" in turns[0][2]:
        found["attention"] = {count: _attention(turns, count) for count in turns[0][2]["attention"]}
    if "overload" in turns[0][2]:
        found["overload"] = _overload([turn["overload"] for _, _, turn in turns])
    return found


def _callers(turns: list[tuple[Found, float, Found]], count: str) -> Found:
    pairs = [(loop, turn["callers"][count]) for loop, _, turn in turns]
    plain = ("throughput_per_s", "p50_ms", "p99_ms", "mean_batch", "server_cpu_ms", "client_cpu_ms")
    return {
        **{name: spread(report[name] for _, report in pairs) for name in plain},
        "of_ceiling": spread(report["throughput_per_s"] / loop["images_per_s"] for loop, report in pairs),
        "added_core_ms": spread(
            report["server_cpu_ms"] - loop["core_ms"] for loop, report in pairs if report["server_cpu_ms"] is not None
        ),
        "lost": _lost([report for _, report in pairs]),
    }


def _attention(turns: list[tuple[Found, float, Found]], count: str) -> Found:
    pairs = [(turn["callers"][count], turn["attention"][count]) for _, _, turn in turns if count in turn["callers"]]
    return {
        "throughput_per_s": spread(asked["throughput_per_s"] for _, asked in pairs),
        "of_predict": spread(asked["throughput_per_s"] / plain["throughput_per_s"] for plain, asked in pairs),
        "p50_ms": spread(asked["p50_ms"] for _, asked in pairs),
        "received_bytes": spread(asked["received_bytes"] for _, asked in pairs),
        "lost": _lost([asked for _, asked in pairs]),
    }


def _overload(reports: list[Found]) -> Found:
    return {
        "rate": spread(r["rate"] for r in reports),
        "goodput_per_s": spread(r["goodput_per_s"] for r in reports),
        "of_peak": spread(r["goodput_per_s"] / r["peak_per_s"] for r in reports if r["peak_per_s"]),
        "p99_ms": spread(r["p99_ms"] for r in reports),
        "refused": spread(r["refused"] / r["requests"] for r in reports if r["requests"]),
        "refused_p50_ms": spread(r["refused_p50_ms"] for r in reports),
        "refused_p99_ms": spread(r["refused_p99_ms"] for r in reports),
        "lost": _lost([{**r, "refused": 0} for r in reports]),
    }


def _lost(reports: list[Found]) -> dict[str, int]:
    """Refusals and errors of all rounds, by name."""
    every: dict[str, int] = {}
    for report in reports:
        for name, count in {"refused": report["refused"], **report["errors"]}.items():
            every[name] = every.get(name, 0) + count
    return {name: count for name, count in every.items() if count}


def markdown(result: Found) -> str:
    facts = result["machine"]
    words = result["arguments"]
    versions = ", ".join(f"{name} {told}" for name, told in facts["versions"].items())
    head = (
        f"{facts['cores']} cores, {facts['processor']}; {versions}; {words['rounds']} rounds of {words['seconds']:g} s"
    )
    return "\n\n".join([head, *(_scenario(name, found) for name, found in result["scenarios"].items())])


def _scenario(name: str, found: Found) -> str:
    told, servers = found["summary"], found["summary"]["servers"]
    parts = [f"### {name}: {found['told']}, {_photos(found['jpegs'])}", _ceiling(told["ceiling"])]
    parts.append(
        _table(
            "server | callers | images/s | of the ceiling | p50, ms | p99, ms | batch | core-ms | added | client's",
            (_callers_row(name, count, row) for name, s in servers.items() for count, row in s["callers"].items()),
        )
    )
    parts.append(
        _table(
            "server | ready, s | PSS, MB | p50 added to a lone image, ms",
            (
                f"{n} | {_told(s['ready_s'])} | {_told(s['pss_mb'], 0)} | {_told(s['p50_added_ms'], 2)}"
                for n, s in servers.items()
            ),
        )
    )
    if told.get("beside"):
        parts.append(
            _table(
                "ours beside | callers | images/s, ours over theirs | p99, theirs over ours",
                (
                    f"{n} | {count} | {_told(row['throughput'], 2)} | {_told(row['p99'], 2)}"
                    for n, counts in told["beside"].items()
                    for count, row in counts.items()
                ),
            )
        )
    if any("attention" in s for s in servers.values()):
        parts.append(
            _table(
                "/attention, callers | images/s | of /predict | p50, ms | bytes | lost",
                (_attention_row(c, row) for s in servers.values() for c, row in s.get("attention", {}).items()),
            )
        )
    if any("overload" in s for s in servers.values()):
        parts.append(
            _table(
                "overload, server | arrivals/s | in time/s | of its peak | p99, ms | refused | within, ms (p99) | lost",
                (_overload_row(n, s["overload"]) for n, s in servers.items() if "overload" in s),
            )
        )
    return "\n\n".join(parts)


def _photos(sizes: dict[str, int]) -> str:
    return f"{len(sizes)} JPEGs of {min(sizes.values()) / 1000:.0f} to {max(sizes.values()) / 1000:.0f} kB"


def _ceiling(told: Found) -> str:
    loops = "; ".join(f"{name} {_told(figure)}" for name, figure in told["loops"].items())
    forward = ", ".join(
        f"{_told(figure, 2)} in batches of {batch}" for batch, figure in told["forward_core_ms"].items()
    )
    alone = ", ".join(f"{_told(figure, 2)} ({name})" for name, figure in told["alone_ms"].items())
    return (
        f"Ceiling, images/s: {loops}. Best: {told['best']}, {_told(told['core_ms'], 2)} core-ms an image; decoding "
        f"alone {_told(told['decode_core_ms'], 2)}, forward alone {forward}. One image at a time, p50 ms: {alone}."
    )


def _callers_row(name: str, count: str, row: Found) -> str:
    cells = [name, count, _told(row["throughput_per_s"]), _told(row["of_ceiling"], 3), _told(row["p50_ms"], 2)]
    cells += [_told(row["p99_ms"]), _told(row["mean_batch"]), _told(row["server_cpu_ms"], 2)]
    cells += [_told(row["added_core_ms"], 2), _told(row["client_cpu_ms"], 2) + _names(row["lost"], "; ")]
    return " | ".join(cells)


def _attention_row(count: str, row: Found) -> str:
    cells = [count, _told(row["throughput_per_s"]), _told(row["of_predict"], 3), _told(row["p50_ms"], 2)]
    return " | ".join([*cells, _told(row["received_bytes"], 0), _names(row["lost"])])


def _overload_row(name: str, row: Found) -> str:
    cells = [name, _told(row["rate"], 0), _told(row["goodput_per_s"]), _told(row["of_peak"], 3), _told(row["p99_ms"])]
    p99 = f" ({_told(row['refused_p99_ms'])})" if row["refused_p99_ms"] else ""
    return " | ".join([*cells, _told(row["refused"], 2), _told(row["refused_p50_ms"], 2) + p99, _names(row["lost"])])


def _table(head: str, rows: Iterable[str]) -> str:
    line = "|" + "---|" * (head.count("|") + 1)
    return "\n".join([f"| {head} |", line, *(f"| {row} |" for row in rows)])


def _told(figure: Spread, digits: int = 1) -> str:
    """Median, and behind it the least and the most where rounds differ."""
    if figure is None:
        return "–"
    median, least, most = (f"{value:.{digits}f}" for value in figure)
    return median if least == most else f"{median} ({least}..{most})"


def _names(lost: dict[str, int], before: str = "") -> str:
    return before + ", ".join(f"{count} {name}" for name, count in lost.items()) if lost else ""


if __name__ == "__main__":
    kept = json.loads(Path(sys.argv[1]).read_text())
    for scenario in kept["scenarios"].values():
        scenario["summary"] = summary(scenario["rounds"])
    print(markdown(kept))
