"""Fixtures that every room shares."""

from collections.abc import Iterator

import pytest

from tests.fakes import Service, service


@pytest.fixture
def serving() -> Iterator[Service]:
    with service() as running:
        yield running
