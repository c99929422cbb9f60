"""Fuzzing for a few seconds each, or as long as FUZZ_SECONDS says: ``make fuzz``. What it finds becomes a test."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.configuration import set_hypothesis_home_dir
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.hostile.conftest import Target

SECONDS = int(os.environ.get("FUZZ_SECONDS", "3"))
ROOT = Path(__file__).parents[2]
set_hypothesis_home_dir(ROOT / "runs" / "hypothesis")  # which it would make where it is run
# What the document promises of every answer. Not asked: that whatever fits the schema is accepted; bytes are no image.
PROMISED = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="atheris has no wheel for it")
@pytest.mark.parametrize("target", ["decode", "tensors", "bodies"])
def test_no_bytes_do_more_than_be_refused(target: str) -> None:
    """Through a shell that forks: libFuzzer takes for its own the most memory that whoever became it ever had, ours."""
    forked = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*forked, sys.executable, "-W", "ignore", "-m", "tests.hostile.fuzz", target, "-seed=1"]
    done = subprocess.run(
        [*command, f"-max_total_time={SECONDS}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    assert runs, done.stderr[-3000:]
    assert int(runs[1]) > 30 * SECONDS
    print(target, runs[0])


def test_every_operation_of_the_document_keeps_its_promises(target: Target) -> None:
    schema = schemathesis.openapi.from_url(target.serving.url + "/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:

        @settings(
            max_examples=10 * SECONDS,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def asked(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=PROMISED)

        asked()
