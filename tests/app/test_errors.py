"""app/errors.py: every error of the contract exists once, and all have one shape."""

import ast
from pathlib import Path

import pytest

from app import errors
from app.errors import ERRORS, BadImage, MethodNotAllowed, Overloaded, ServiceError, Unauthorized, problem

CONTRACT = {
    "bad_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "request_timeout": 408,
    "body_too_large": 413,
    "image_too_large": 413,
    "too_many_images": 413,
    "unsupported_media_type": 415,
    "bad_image": 422,
    "bad_parameter": 422,
    "internal_error": 500,
    "overloaded": 503,
    "draining": 503,
    "not_ready": 503,
    "deadline_exceeded": 504,
}


def test_every_error_of_the_contract_exists_exactly_once_with_its_status() -> None:
    assert [(error.code, error.status) for error in ERRORS] == list(CONTRACT.items())


def test_no_error_is_left_out_of_the_list() -> None:
    assert set(ERRORS) == set(ServiceError.__subclasses__())
    assert all(error.__subclasses__() == [] for error in ERRORS)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    words = [line.split()[1:4] for line in (errors.__doc__ or "").splitlines() if line.startswith(("├", "└"))]
    assert words == [[error.__name__, str(error.status), error.code] for error in ERRORS]


@pytest.mark.parametrize("error", ERRORS)
def test_names_titles_and_codes_agree(error: type[ServiceError]) -> None:
    assert error.__name__.lower() == error.code.replace("_", "") == error.title.replace(" ", "").lower()


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_becomes_the_same_shape_in_the_contracts_order(error: type[ServiceError]) -> None:
    members = problem(error(), "r-1")
    assert list(members) == ["type", "title", "status", "detail", "code", "request_id"]
    assert all(members.values())
    assert members["type"] == f"urn:nam-serve:error:{error.code}"


@pytest.mark.parametrize(
    ("path", "there"), [("/v2", True), ("/v2/models/x", True), ("/v2x", False), ("/predict", False)]
)
def test_below_v2_the_detail_is_there_once_more(path: str, there: bool) -> None:
    assert problem(BadImage(), "r-1", path).get("error") == (BadImage.sentence if there else None)


def test_the_detail_is_the_raisers_own() -> None:
    error = BadImage("The image is upside down.")
    assert (str(error), error.detail, problem(error, "r-1")["detail"]) == ("The image is upside down.",) * 3


@pytest.mark.parametrize("error", ERRORS)
def test_headers_come_with_the_statuses_that_want_them(error: type[ServiceError]) -> None:
    wanted = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}, 503: {"Retry-After": "1"}}
    assert error().headers == wanted.get(error.status, {})


def test_given_headers_join_the_defaults_and_win() -> None:
    assert Overloaded("Full.", headers={"Retry-After": "7"}).headers == {"Retry-After": "7"}
    assert Unauthorized(headers={"X-Why": "none fits"}).headers == {"WWW-Authenticate": "Bearer", "X-Why": "none fits"}
    assert MethodNotAllowed(headers={"Allow": "GET"}).headers == {"Allow": "GET"}


def test_one_errors_headers_are_not_anothers() -> None:
    Overloaded().headers["Retry-After"] = "99"
    assert Overloaded().headers == {"Retry-After": "1"}


def test_the_module_imports_the_standard_library_alone() -> None:
    tree = ast.parse(Path(errors.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"collections.abc", "types", "typing"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))
