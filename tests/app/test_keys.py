"""Keys: where they come from, what they close, and what ``NAM_OPEN`` opens again."""

import hashlib
import hmac
from pathlib import Path

import pytest
from pydantic import ValidationError

from app import guards
from app.middleware import Keys
from app.settings import Settings
from tests.fakes import picture, service

KEY = {"authorization": "Bearer one"}
HEALTH = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
DOORS = {
    "page": {"/", "/web/app.js"},
    "docs": {"/docs", "/openapi.json", "/docs/assets/swagger-ui.css", "/web/docs.js", "/web/icon.svg"},
    "metrics": {"/metrics"},
}
CLOSED = {"/model", "/attention/weights", "/v2", "/v2/models/fake/ready", "/nowhere", "/docs/", "/web", "/metrics/"}


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# of the shop\nshop-1   # until May\n\n  shop-2\r\n")
    settings = Settings(api_keys="one,two", api_keys_file=tmp_path / "keys")
    assert settings.keys == ("one", "two", "shop-1", "shop-2")
    with service(api_keys_file=tmp_path / "keys") as serving:
        told = [serving.client.get("/model", headers={"authorization": f"Bearer {key}"}) for key in ("shop-2", "until")]
    assert [answer.status_code for answer in told] == [200, 401]


@pytest.mark.parametrize("text", ["", "# nobody\n\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValidationError, match="there are none"):
        Settings(api_keys_file=tmp_path / "keys")


@pytest.mark.parametrize("odd", ["se cret", "schlüssel", "a,b"])
def test_a_key_that_nobody_could_send_is_refused_and_none_is_shown(tmp_path: Path, odd: str) -> None:
    (tmp_path / "keys").write_text(f"{odd}\n", encoding="utf-8")
    with pytest.raises(ValidationError, match="no header can carry") as caught:
        Settings(api_keys_file=tmp_path / "keys", api_keys="hidden-one")
    assert not any(key in str(caught.value) for key in (odd, "hidden-one"))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Settings(api_keys_file=tmp_path / "nowhere")


@pytest.mark.parametrize("slip", [" , ", " "])
def test_commas_and_spaces_are_no_keys_and_leave_nothing_open(slip: str) -> None:
    with pytest.raises(ValidationError, match="there are none"):
        Settings(api_keys=slip)


def test_what_is_opened_must_be_known() -> None:
    with pytest.raises(ValidationError, match="model"):
        Settings(open="page, model")


@pytest.mark.parametrize("opened", ["", "page", "docs", "metrics", "page,metrics", "page, docs ,metrics"])
def test_what_is_named_is_open_and_all_else_is_closed(opened: str) -> None:
    doors = {door.strip() for door in opened.split(",") if door}
    free = HEALTH.union(*(DOORS[door] for door in doors))
    with service(api_keys="one", open=opened) as serving:
        told = {path: serving.client.get(path).status_code for path in HEALTH.union(CLOSED, *DOORS.values())}
    if "page" in doors:  # whose files are one folder
        free |= {path for path in DOORS["docs"] if path.startswith("/web/")}
    assert {path for path, status in told.items() if status != 401} == free


def test_every_route_but_health_is_closed() -> None:
    with service(api_keys="one", open="") as serving:
        paths = serving.client.app.openapi()["paths"]
        told = {
            (method, path): serving.client.request(method, path.format(name="fake")).status_code
            for path, methods in paths.items()
            for method in (*methods, "head", "options")
        }
    assert len(paths) > 10
    assert {path for (_, path), status in told.items() if status != 401} == HEALTH == Keys.HEALTH


def test_a_key_counts_in_its_own_header_alone() -> None:
    elsewhere = [
        {"headers": {"x-api-key": "one"}},
        {"headers": {"cookie": "key=one"}},
        {"headers": {"authorization": "one"}},
        {"headers": {"proxy-authorization": "Bearer one"}},
        {"params": {"key": "one", "authorization": "Bearer one"}},
        {"auth": ("one", "one")},
    ]
    with service(api_keys="one") as serving:
        assert {serving.client.get("/model", **odd).status_code for odd in elsewhere} == {401}
        assert serving.client.get("/model", headers=KEY).status_code == 200


def test_digests_of_every_key_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(guards.hmac, "compare_digest", lambda *two: compared.append(two) or real(*two))
    with service(api_keys="one,much-longer-two") as serving:
        assert serving.client.get("/model", headers=KEY).status_code == 200
    sent, *_ = (hashlib.sha256(key.encode()).digest() for key in ("one",))
    assert compared == [(sent, hashlib.sha256(key.encode()).digest()) for key in ("one", "much-longer-two")]


def test_an_unauthorized_request_holds_nothing_and_is_counted() -> None:
    with service(api_keys="one") as serving:
        answer = serving.client.post("/predict", content=picture(), headers={"content-type": "image/png"})
        assert (answer.status_code, serving.load.requests, serving.load.body_bytes) == (401, 0, 0)
        assert serving.metric("nam_requests_total", route="/predict", status="401") == 1
        assert serving.metric("nam_refusals_total", code="unauthorized") == 1
        assert serving.engine.batches == []


def test_the_document_tells_of_keys_where_they_are_set() -> None:
    with service(api_keys="one", open="docs") as serving:
        document = serving.client.get("/openapi.json").json()
    (name,) = document["components"]["securitySchemes"]
    assert document["components"]["securitySchemes"][name] | {"description": ""} == {
        "type": "http",
        "scheme": "bearer",
        "description": "",
    }
    assert document["security"] == [{name: []}]
    unlocked = {
        path for path, way in document["paths"].items() for operation in way.values() if "security" in operation
    }
    assert unlocked == HEALTH


def test_the_document_says_nothing_of_keys_where_there_are_none() -> None:
    with service() as serving:
        document = serving.client.get("/openapi.json").json()
    assert "security" not in document
    assert "securitySchemes" not in document["components"]


def test_what_decodes_strangers_images_is_told_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("two")
    monkeypatch.setenv("NAM_API_KEYS", "one")
    monkeypatch.setenv("NAM_API_KEYS_FILE", str(tmp_path / "keys"))
    told = Settings().environment()
    assert (told["NAM_API_KEYS"], told["NAM_API_KEYS_FILE"]) == ("", "")
    assert Settings().environment(keys=True).items() >= {("NAM_API_KEYS", "one")}


def test_no_answer_says_what_server_it_is_and_none_about_an_image_is_kept() -> None:
    with service() as serving:
        answers = [
            serving.client.post("/predict", content=picture(), headers={"content-type": "image/png"}),
            serving.client.post("/attention?format=png", content=picture()),
            serving.client.post("/predict", content=b"no image"),
            serving.client.get("/model"),
            serving.client.get("/nowhere"),
        ]
        kept = [serving.client.get(path) for path in ("/attention/weights", "/", "/docs/assets/swagger-ui.css")]
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}
    assert all("no-store" not in answer.headers.get("cache-control", "") for answer in kept)
    for answer in (*answers, *kept):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
