"""Requests. See the README's tree for what is where."""

import nam  # noqa: F401 - before OpenVINO is: nobody is told of what it does
