"""Every error of the contract, provoked over HTTP against the fake engine, in the one shape."""

import ast
import asyncio
import base64
import contextlib
import encodings
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from app import errors, schemas
from app.middleware import Admission
from tests.fakes import Service, picture, service, until

PNG = {"content-type": "image/png"}
Response = httpx2.Response


def refused(answer: Response, status: int, code: str) -> dict:
    """The answer's problem, after checking the shape that every error has."""
    problem = answer.json()
    schemas.Problem.model_validate(problem)
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"]
    return problem


SIMPLE: dict[str, tuple[int, str, Callable[[httpx2.Client], Response]]] = {
    "empty body": (400, "bad_request", lambda c: c.post("/predict", headers=PNG)),
    "bad JSON": (
        400,
        "bad_request",
        lambda c: c.post("/predict", content=b"{", headers={"content-type": "application/json"}),
    ),
    "JSON of another shape": (400, "bad_request", lambda c: c.post("/predict", json=["image"])),
    "bad base64": (400, "bad_request", lambda c: c.post("/predict", json={"image": "not base64!"})),
    "empty base64": (400, "bad_request", lambda c: c.post("/predict", json={"image": ""})),
    "base64 that is no string": (400, "bad_request", lambda c: c.post("/predict", json={"image": 5})),
    "missing part": (400, "bad_request", lambda c: c.post("/predict", files={"photo": picture()})),
    "a field for a file": (400, "bad_request", lambda c: c.post("/predict", files={"file": (None, "text")})),
    "an empty part": (400, "bad_request", lambda c: c.post("/predict", files={"file": ("a.png", b"")})),
    "multipart without a boundary": (
        400,
        "bad_request",
        lambda c: c.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}),
    ),
    "an empty list": (400, "bad_request", lambda c: c.post("/predict/batch", json={"images": []})),
    "no such path": (404, "not_found", lambda c: c.get("/predictions")),
    "no such method": (405, "method_not_allowed", lambda c: c.get("/predict")),
    "no such format": (
        406,
        "not_acceptable",
        lambda c: c.post("/attention?format=gif", content=picture(), headers=PNG),
    ),
    "nothing acceptable": (
        406,
        "not_acceptable",
        lambda c: c.post("/attention", content=picture(), headers=PNG | {"accept": "text/html, application/json;q=0"}),
    ),
    "two images where one is asked for": (
        413,
        "too_many_images",
        lambda c: c.post("/predict", files=[("file", picture()), ("file", picture())]),
    ),
    "media type": (
        415,
        "unsupported_media_type",
        lambda c: c.post("/predict", content=b"x", headers={"content-type": "text/plain"}),
    ),
    "media type of a batch": (
        415,
        "unsupported_media_type",
        lambda c: c.post("/predict/batch", content=picture(), headers=PNG),
    ),
    "content encoding": (
        415,
        "unsupported_media_type",
        lambda c: c.post("/predict", content=picture(), headers=PNG | {"content-encoding": "gzip"}),
    ),
    "first bytes": (415, "unsupported_media_type", lambda c: c.post("/predict", content=b"hello", headers=PNG)),
    "HEIC": (
        415,
        "unsupported_media_type",
        lambda c: c.post("/predict", content=b"\0\0\0\x18ftypheic\0\0\0\0", headers=PNG),
    ),
    "truncated image": (422, "bad_image", lambda c: c.post("/predict", content=picture()[:40], headers=PNG)),
    "top_k 0": (422, "bad_parameter", lambda c: c.post("/predict?top_k=0", content=picture(), headers=PNG)),
    "top_k over the classes": (
        422,
        "bad_parameter",
        lambda c: c.post("/predict?top_k=11", content=picture(), headers=PNG),
    ),
    "top_k no number": (422, "bad_parameter", lambda c: c.post("/predict?top_k=five", content=picture(), headers=PNG)),
    "language": (422, "bad_parameter", lambda c: c.post("/predict?lang=fr", content=picture(), headers=PNG)),
    "block": (422, "bad_parameter", lambda c: c.post("/attention?block=layer9", content=picture(), headers=PNG)),
    "maps": (422, "bad_parameter", lambda c: c.post("/attention?maps=some", content=picture(), headers=PNG)),
    "more channels than a message can say": (
        422,
        "bad_parameter",
        lambda c: c.post(f"/attention?top_channels={2**64}", content=picture(), headers=PNG),
    ),
    "timeout no number": (
        422,
        "bad_parameter",
        lambda c: c.post("/predict", content=picture(), headers=PNG | {"x-timeout-ms": "soon"}),
    ),
    "timeout 0": (
        422,
        "bad_parameter",
        lambda c: c.post("/predict", content=picture(), headers=PNG | {"x-timeout-ms": "0"}),
    ),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_a_bad_request_is_told_what_is_wrong(serving: Service, name: str) -> None:
    status, code, send = SIMPLE[name]
    refused(send(serving.client), status, code)
    assert serving.engine.batches == []
    assert serving.metric("nam_refusals_total", code=code) == 1


def test_a_character_set_that_a_form_names_is_not_remembered(serving: Service) -> None:
    """Python keeps the name of every one that it does not know, of any length, for good."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--x--\r\n' % picture()
    for charset, status in (("UTF-8", 200), ("one-of-nobody", 400), ("undefined", 400)):
        told = {"content-type": f"multipart/form-data; charset={charset}; boundary=x"}
        assert serving.client.post("/predict", content=body, headers=told).status_code == status
    assert "one-of-nobody" not in encodings._cache  # type: ignore[attr-defined]


def test_405_says_what_is_allowed(serving: Service) -> None:
    assert serving.client.get("/predict").headers["allow"] == "POST"


def test_a_body_over_the_cap_is_refused_by_its_declared_length() -> None:
    with service(max_body_bytes=100) as serving:
        refused(serving.client.post("/predict", content=b"x" * 101, headers=PNG), 413, "body_too_large")


def test_a_body_over_the_cap_is_refused_while_it_arrives() -> None:
    with service(max_body_bytes=100) as serving:
        chunks = (b"x" * 40 for _ in range(9))
        refused(serving.client.post("/predict", content=chunks, headers=PNG), 413, "body_too_large")
        assert serving.load.body_bytes == 0


def test_an_image_over_the_pixel_cap_is_refused_by_its_header() -> None:
    with service(max_pixels=99) as serving:
        refused(serving.client.post("/predict", content=picture(size=(10, 10)), headers=PNG), 413, "image_too_large")


def test_too_many_images() -> None:
    text = base64.b64encode(picture()).decode()
    with service(max_images=2) as serving:
        refused(serving.client.post("/predict/batch", json={"images": [text] * 3}), 413, "too_many_images")
        parts = [("file", picture())] * 3
        refused(serving.client.post("/predict/batch", files=parts), 413, "too_many_images")


def test_keys() -> None:
    with service(api_keys="one, two") as serving:
        missing = serving.client.post("/predict", content=picture(), headers=PNG)
        refused(missing, 401, "unauthorized")
        assert missing.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer three", "Bearer one, two", "Basic one", "Bearer", "Bearer \u00e9"):
            headers = PNG | {"authorization": wrong.encode()}
            refused(serving.client.post("/predict", content=picture(), headers=headers), 401, "unauthorized")
        for right in ("Bearer one", "bearer two"):
            answer = serving.client.post("/predict", content=picture(), headers=PNG | {"authorization": right})
            assert answer.status_code == 200
        assert [serving.client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        assert [serving.client.get(path).status_code for path in ("/metrics", "/model", "/nowhere")] == [401] * 3


def test_full_is_refused_before_the_body_is_read() -> None:
    with service(max_requests=1) as serving:
        serving.load.requests = 1
        answer = serving.client.post("/predict", content=picture(), headers=PNG)
        refused(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1


def test_bytes_in_flight_are_bounded() -> None:
    with service(max_inflight_bytes=1000) as serving:
        serving.load.body_bytes = 990
        refused(serving.client.post("/predict", content=b"x" * 20, headers=PNG), 503, "overloaded")
        assert serving.load.body_bytes == 990


def test_a_full_queue_refuses() -> None:
    with service(max_queue=1) as serving:
        serving.engine.gate.clear()
        request = {"content": picture(), "headers": PNG}
        held = [threading.Thread(target=serving.client.post, args=("/predict",), kwargs=request) for _ in range(2)]
        held[0].start()
        until(lambda: serving.engine.batches == [1])
        held[1].start()
        until(lambda: serving.metric("nam_queue_depth") == 1)
        answer = serving.client.post("/predict", **request)
        serving.engine.gate.set()
        for caller in held:
            caller.join()
        refused(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("why", ["full", "draining", "too large"])
def test_a_refusal_at_the_door_reads_nothing_of_the_body(why: str) -> None:
    with service(max_requests=1, max_body_bytes=100) as serving:
        serving.load.requests = 1 if why == "full" else 0
        serving.load.draining = why == "draining"
        scope = _scope(serving)
        scope["headers"].append((b"content-length", b"101" if why == "too large" else b"50"))
        status, _ = _asgi(serving, scope, [])
        assert status == (413 if why == "too large" else 503)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/attention", "/v2/models/fake/infer"])
def test_no_spelling_of_a_path_goes_around_admission(path: str) -> None:
    with service() as serving:
        for other in (path + "%0A", path + "%0D%0A", path + "/", "/" + path):
            url = f"{serving.client.base_url}{other}"  # whole: what begins with // would name a host
            refused(serving.client.post(url, content=picture(), headers=PNG), 404, "not_found")


def test_draining_refuses_new_work_and_turns_readiness_red(serving: Service) -> None:
    serving.load.draining = True
    refused(serving.client.post("/predict", content=picture(), headers=PNG), 503, "draining")
    refused(serving.client.get("/readyz"), 503, "draining")
    assert serving.client.get("/healthz").status_code == 200


def test_a_closed_batcher_turns_readiness_red() -> None:
    with service() as serving:
        services = serving.client.app_state["services"]
        serving.client.portal.call(services.batcher.close, 0)
        refused(serving.client.get("/readyz"), 503, "not_ready")
        refused(serving.client.post("/predict", content=picture(), headers=PNG), 503, "not_ready")


def test_the_callers_deadline_passes() -> None:
    with service() as serving:
        serving.engine.gate.clear()
        answer = serving.client.post("/predict", content=picture(), headers=PNG | {"x-timeout-ms": "60"})
        serving.engine.gate.set()
        refused(answer, 504, "deadline_exceeded")


def test_the_services_deadline_passes_although_the_caller_would_wait() -> None:
    with service(timeout_ms=60) as serving:
        serving.engine.gate.clear()
        answer = serving.client.post("/predict", content=picture(), headers=PNG | {"x-timeout-ms": "9" * 30})
        serving.engine.gate.set()
        refused(answer, 504, "deadline_exceeded")


def test_an_engine_error_is_ours_and_says_nothing_of_its_cause(serving: Service) -> None:
    serving.engine.error = RuntimeError("CUDA error at 0x7f00dead")
    problem = refused(serving.client.post("/predict", content=picture(), headers=PNG), 500, "internal_error")
    assert "CUDA" not in str(problem)
    assert serving.client.post("/predict", content=picture(), headers=PNG).status_code == 200
    assert serving.metric("nam_batch_failures_total") == 1


def test_a_body_that_stops_arriving_ends_in_408() -> None:
    with service(body_idle_ms=50) as serving:
        _, answer = _asgi(serving, _scope(serving), [{"type": "http.request", "body": b"x", "more_body": True}])
        refused(answer, 408, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert (serving.load.requests, serving.load.body_bytes) == (0, 0)


def test_a_deadline_that_passes_while_the_body_arrives_is_a_deadline() -> None:
    with service(timeout_ms=50) as serving:
        _, answer = _asgi(serving, _scope(serving), [{"type": "http.request", "body": b"x", "more_body": True}])
        refused(answer, 504, "deadline_exceeded")


def test_a_caller_that_leaves_while_sending_costs_nothing() -> None:
    with service() as serving:
        pieces = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
        status, _ = _asgi(serving, _scope(serving), pieces)
        assert status == 0  # nobody was there to answer
        assert (serving.load.requests, serving.load.body_bytes) == (0, 0)
        assert serving.engine.batches == []
        assert serving.metric("nam_requests_total", route="/predict", status="499") == 1


def test_what_outlives_the_drain_is_told_so() -> None:
    """The server cancels what is left when the grace is over."""
    with service() as serving:
        serving.engine.gate.clear()
        sent: list[dict] = []

        async def request() -> None:
            pieces = iter([{"type": "http.request", "body": picture(), "more_body": False}])

            async def receive() -> dict:
                return next(pieces)

            async def send(message: dict) -> None:
                sent.append(message)

            task = asyncio.create_task(serving.client.app(_scope(serving), receive, send))
            while not serving.engine.batches:
                await asyncio.sleep(0.001)
            serving.load.draining = True
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        serving.client.portal.call(request)
        serving.engine.gate.set()
        refused(_response(sent), 503, "draining")


def _asgi(serving: Service, scope: dict, pieces: list[dict]) -> tuple[int, Response]:
    """Straight to the ASGI layer, where a test client would send its body whole: these pieces, then silence."""
    sent: list[dict] = []
    left = iter(pieces)

    async def receive() -> dict:
        piece = next(left, None)
        return piece if piece is not None else await asyncio.sleep(600)

    async def send(message: dict) -> None:
        sent.append(message)

    async def request() -> None:
        await asyncio.wait_for(serving.client.app(scope, receive, send), 60)

    serving.client.portal.call(request)
    return (sent[0]["status"], _response(sent)) if sent else (0, Response(204))


def _response(sent: list[dict]) -> Response:
    start, body = sent
    return Response(start["status"], headers=start["headers"], content=body["body"])


def _scope(serving: Service) -> dict:
    return {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
        "state": dict(serving.client.app_state),
    }


@pytest.mark.parametrize("sent", ["abc-1_2.3:4", "A" * 128])
def test_a_good_request_id_is_kept(serving: Service, sent: str) -> None:
    assert serving.client.get("/healthz", headers={"x-request-id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "A" * 129, "x\u00e9".encode(), "<script>"])
def test_a_bad_request_id_is_replaced(serving: Service, sent: str | bytes) -> None:
    ids = {serving.client.get("/healthz", headers={"x-request-id": sent}).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(new) == 32 for new in ids)


def test_every_error_of_the_contract_is_provoked_here() -> None:
    """What the calls of `refused` and the table above name, read from the syntax tree of this file."""
    calls = [n for n in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(n, ast.Call)]
    named = [
        call.args[2].value
        for call in calls
        if getattr(call.func, "id", "") == "refused" and len(call.args) == 3 and isinstance(call.args[2], ast.Constant)
    ]
    assert {error.code for error in errors.ERRORS} == {*named, *(code for _, code, _ in SIMPLE.values())}


def test_admission_stands_before_every_post() -> None:
    with service() as serving:
        paths = serving.client.get("/openapi.json").json()["paths"]
        posts = [path for path, methods in paths.items() if "post" in methods]
        (admission,) = [m for m in serving.client.app.user_middleware if m.cls is Admission]
        assert set(posts) == set(admission.kwargs["paths"])


@pytest.mark.parametrize(("deadline_ms", "status"), [("900", 503), ("3000", 200), (None, 200)])
def test_who_would_be_answered_too_late_is_told_so_at_the_door(
    serving: Service, deadline_ms: str | None, status: int
) -> None:
    serving.load.image_s, serving.load.requests = 0.1, 10  # the wait: a second
    headers = PNG if deadline_ms is None else PNG | {"X-Timeout-Ms": deadline_ms}
    answer = serving.client.post("/predict", content=picture(), headers=headers)
    serving.load.requests -= 10
    assert answer.status_code == status
    if status == 503:
        assert answer.json()["code"] == "overloaded"
        assert answer.headers["Retry-After"] == "1"
        assert serving.engine.batches == []
