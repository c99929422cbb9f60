"""The page as it is answered: what it loads, what it may do, that it needs no key and tells none."""

import re

import pytest

from app import page
from tests.fakes import Service, service

FILES = sorted(page._FILES)


def test_the_page_may_load_our_own_files_and_nothing_else(serving: Service) -> None:
    answer = serving.client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert {policy.pop(name) for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert set(policy.values()) == {"'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "camera=()" in answer.headers["permissions-policy"]


def test_the_docs_have_the_pages_policy_but_for_their_pictures(serving: Service) -> None:
    of_page, of_docs = (serving.client.get(path).headers["content-security-policy"] for path in ("/", "/docs"))
    assert of_docs == of_page.replace("img-src 'self'", "img-src 'self' data:")


def test_the_page_has_no_inline_script_or_style_and_every_address_in_it_is_answered(serving: Service) -> None:
    text = serving.client.get("/").text
    assert not re.search(r"<style|style=|<script(?![^>]*src=)|\son\w+=", text)
    addresses = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert "/web/app.js" in addresses
    assert {serving.client.get(address).status_code for address in addresses} == {200}


def test_every_module_that_a_script_imports_is_answered(serving: Service) -> None:
    scripts = [name for name in FILES if name.endswith(".js")]
    imported = {found for name in scripts for found in re.findall(r'from "\./(.+)"', page._FILES[name].body.decode())}
    assert imported
    assert imported <= set(scripts)


@pytest.mark.parametrize("path", ["/", *(f"/web/{name}" for name in FILES)])
def test_a_file_that_has_not_changed_is_not_sent_again(serving: Service, path: str) -> None:
    first = serving.client.get(path)
    again = serving.client.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert serving.client.get(path, headers={"if-none-match": '"other"'}).content == first.content


@pytest.mark.parametrize("name", ["", "index.html", "examples", "examples/README.md", "../page.py", "..%2fpage.py"])
def test_only_what_the_page_loads_is_answered(serving: Service, name: str) -> None:
    answer = serving.client.get(f"/web/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_the_page_loads_without_a_key_and_nothing_else_does() -> None:
    with service(api_keys="one") as serving:
        loaded = [serving.client.get(path).status_code for path in ("/", *(f"/web/{name}" for name in FILES))]
        closed = [serving.client.get(path).status_code for path in ("/model", "/docs", "/web", "/openapi.json")]
    assert set(loaded) == {200}
    assert set(closed) == {401}


def test_an_example_is_small(serving: Service) -> None:
    examples = [name for name in FILES if name.startswith("examples/")]
    assert len(examples) == 3
    assert all(len(serving.client.get(f"/web/{name}").content) <= 60_000 for name in examples)
