"""app/oip.py, oip_schemas.py, oip_tensors.py: the Open Inference Protocol v2 against the fake engine. The binary
layouts are written out by hand, from the protocol's text; in tests/e2e/test_oip.py its own client speaks."""

import base64
import dataclasses
import json
import struct
from typing import Any

import httpx2
import numpy as np
import pytest

from app import oip_schemas
from tests.app.test_contract_errors import refused
from tests.fakes import CARD, CLASSES, Service, picture, service

MODEL = f"/v2/models/{CARD.name}"
LENGTH = "Inference-Header-Content-Length"
Response = httpx2.Response


def encoded(*levels: int) -> dict[str, Any]:
    """Images of one grey level each, in the JSON."""
    return of_bytes([picture(level) for level in levels])


def of_bytes(images: list[bytes]) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}


def grey(*levels: int) -> np.ndarray:
    return np.stack([np.full((CARD.size, CARD.size, 3), level, np.uint8) for level in levels])


def pixels(*levels: int, flat: bool = False) -> dict[str, Any]:
    array = grey(*levels)
    data = array.ravel().tolist() if flat else array.tolist()
    return {"name": "pixels", "datatype": "UINT8", "shape": list(array.shape), "data": data}


def ask(serving: Service, *inputs: dict[str, Any], to: str = "infer", **members: Any) -> Response:
    return serving.client.post(f"{MODEL}/{to}", json={"inputs": list(inputs), **members})


def ask_binary(serving: Service, tensor: dict[str, Any], raw: bytes, **members: Any) -> Response:
    tensor = {k: v for k, v in tensor.items() if k != "data"} | {"parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor], **members}).encode()
    return serving.client.post(f"{MODEL}/infer", content=text + raw, headers={LENGTH: str(len(text))})


def bytes_tensor(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def tensors(answer: Response) -> dict[str, np.ndarray]:
    """The outputs of an answer that is all JSON."""
    assert answer.status_code == 200, answer.text
    found = oip_schemas.InferAnswer.model_validate(answer.json()).outputs
    kinds = {"FP32": np.float32, "BYTES": object}
    return {one.name: np.array(one.data, kinds[one.datatype]).reshape(one.shape) for one in found}


def test_the_server_tells_its_extensions(serving: Service) -> None:
    told = serving.client.get("/v2").json()
    assert told["name"] == "nam-serve"
    assert told["version"] == serving.client.app.version
    assert told["extensions"] == ["binary_tensor_data", "classification", "explain"]


def test_readiness_is_the_services_and_liveness_is_not(serving: Service) -> None:
    ready = ["/v2/health/ready", f"{MODEL}/ready"]
    assert [serving.client.get(path).json().get("ready") for path in ready] == [True, True]
    serving.load.draining = True
    for path in ready:
        refused(serving.client.get(path), 503, "draining")
    assert serving.client.get("/v2/health/live").json() == {"live": True}


def test_the_model_tells_its_tensors(serving: Service) -> None:
    told = serving.client.get(MODEL).json()
    assert (told["name"], told["versions"]) == (CARD.name, [])
    assert told["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, CARD.size, CARD.size, 3]},
    ]
    assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, CLASSES]}]


@pytest.mark.parametrize("path", ["", "/ready", "/infer", "/explain", "/versions/1/infer", "/versions/1"])
def test_another_model_or_a_version_is_not_found(serving: Service, path: str) -> None:
    name = MODEL if "versions" in path else "/v2/models/another"
    send = serving.client.post if path in ("/infer", "/explain") else serving.client.get
    refused(send(name + path), 404, "not_found")


def test_probabilities_are_those_of_predict_in_the_order_of_the_classes(serving: Service) -> None:
    found = tensors(ask(serving, encoded(50)))["probabilities"]
    answer = serving.client.post(f"/predict?top_k={CLASSES}", content=picture(50)).json()
    told = {one["index"]: one["probability"] for one in answer["predictions"]}
    assert found.shape == (1, CLASSES)
    assert found[0].tolist() == pytest.approx([told[index] for index in range(CLASSES)])


def test_each_image_has_its_row(serving: Service) -> None:
    found = tensors(ask(serving, encoded(225, 0, 100)))["probabilities"]
    assert found.argmax(axis=1).tolist() == [9, 0, 4]


def test_pixels_nested_flat_and_binary_and_images_give_the_same(serving: Service) -> None:
    of_images = tensors(ask(serving, encoded(75, 200)))["probabilities"]
    nested, flat = (ask(serving, pixels(75, 200, flat=flat)) for flat in (False, True))
    binary = ask_binary(serving, pixels(75, 200), grey(75, 200).tobytes())
    for answer in (nested, flat, binary):
        assert (tensors(answer)["probabilities"] == of_images).all()


def test_pixels_are_rows_of_rgb() -> None:
    """What the engine sees of them is (3, S, S)."""
    colours = np.arange(CARD.size * CARD.size * 3, dtype=np.uint8).reshape(1, CARD.size, CARD.size, 3)
    with service() as serving:
        seen: list[np.ndarray] = []
        engine, answer = serving.engine, serving.engine._answer
        engine._answer = lambda ask: (seen.append(ask.pixels), answer(ask))[1]
        ask_binary(serving, pixels(0), colours.tobytes())
    assert (seen[0] == colours[0].transpose(2, 0, 1)).all()
    assert seen[0].flags.c_contiguous


def test_encoded_images_as_raw_bytes(serving: Service) -> None:
    answer = ask_binary(serving, encoded(75, 200), bytes_tensor(picture(75), picture(200)))
    assert (tensors(answer)["probabilities"] == tensors(ask(serving, encoded(75, 200)))["probabilities"]).all()


def test_an_output_as_raw_bytes_follows_the_json(serving: Service) -> None:
    answer = ask(serving, encoded(75, 200), parameters={"binary_data_output": True})
    length = int(answer.headers[LENGTH])
    (told,) = json.loads(answer.content[:length])["outputs"]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert told["parameters"] == {"binary_data_size": 2 * CLASSES * 4}
    raw = np.frombuffer(answer.content[length:], "<f4").reshape(told["shape"])
    assert (raw == tensors(ask(serving, encoded(75, 200)))["probabilities"]).all()


@pytest.mark.parametrize("binary", [True, False])
def test_an_outputs_own_word_beats_the_requests(serving: Service, binary: bool) -> None:
    output = {"name": "probabilities", "parameters": {"binary_data": binary}}
    answer = ask(serving, encoded(75), outputs=[output], parameters={"binary_data_output": not binary})
    assert (LENGTH in answer.headers) is binary


def test_classification_gives_labels_best_first(serving: Service) -> None:
    output = {"name": "probabilities", "parameters": {"classification": 3}}
    found = tensors(ask(serving, encoded(50, 200), outputs=[output]))["probabilities"]
    assert found.shape == (2, 3)
    answer = serving.client.post("/predict?top_k=3", content=picture(200)).json()
    for text, one in zip(found[1], answer["predictions"], strict=True):
        probability, index, label = text.split(":", 2)
        assert (int(index), label) == (one["index"], one["label"])
        assert np.float32(probability) == np.float32(one["probability"])


def test_labels_as_raw_bytes_are_each_behind_its_length(serving: Service) -> None:
    output = {"name": "probabilities", "parameters": {"classification": 2}}
    told = tensors(ask(serving, encoded(50), outputs=[output]))["probabilities"]
    answer = ask(serving, encoded(50), outputs=[output], parameters={"binary_data_output": True})
    assert answer.content[int(answer.headers[LENGTH]) :] == bytes_tensor(*(text.encode() for text in told.ravel()))


def test_the_id_comes_back(serving: Service) -> None:
    assert ask(serving, encoded(50), id="forty-two").json()["id"] == "forty-two"
    assert "id" not in ask(serving, encoded(50)).json()


def test_null_is_absent_and_what_is_not_known_is_ignored(serving: Service) -> None:
    tensor = encoded(50) | {"parameters": None}
    answer = ask(serving, tensor, id=None, outputs=None, parameters={"priority": 1}, filler="x" * 2**17)
    assert answer.status_code == 200
    assert "id" not in answer.json()


def test_the_images_of_a_request_share_a_batch_and_say_so(serving: Service) -> None:
    answer = ask(serving, pixels(0, 25, 50))
    assert serving.engine.batches == [3]
    assert answer.headers["x-batch-size"] == "3"
    assert "queue;dur=" in answer.headers["server-timing"]


def test_one_bad_image_fails_the_request_and_is_named(serving: Service) -> None:
    problem = refused(ask(serving, of_bytes([picture(), picture()[:40], b"hello"])), 422, "bad_image")
    assert problem["detail"].startswith("image[1]: The image begins as PNG")
    assert problem["error"] == problem["detail"]
    refused(ask(serving, of_bytes([picture(), b"hello", picture()[:40]])), 415, "unsupported_media_type")
    no_base64 = encoded(1, 2) | {"data": [base64.b64encode(picture()).decode(), "?"]}
    assert refused(ask(serving, no_base64), 400, "bad_request")["detail"].startswith("image[1]: ")


def test_explain_gives_the_numbers_of_attention(serving: Service) -> None:
    found = tensors(ask(serving, encoded(50, 200), to="explain"))
    blocks = serving.client.post("/attention", content=picture(50)).json()["blocks"]
    assert set(found) == {"probabilities", *(f"{b.name}/{part}" for b in CARD.blocks for part in PARTS)}
    for block in blocks:
        assert found[f"{block['name']}/weights"].tolist() == pytest.approx(block["weights"])
        for kind in ("mean", "std", "min", "max"):
            assert found[f"{block['name']}/gates.{kind}"].tolist() == pytest.approx([block["gates"][kind]] * 2)
        assert found[f"{block['name']}/map"][1] == pytest.approx(np.array(block["map"], np.float32))


PARTS = ("weights", "gates.mean", "gates.std", "gates.min", "gates.max", "map")


def test_explain_gives_what_is_asked_for_in_that_order(serving: Service) -> None:
    names = ["layer2.0/map", "probabilities", "layer1.0/weights"]
    found = tensors(ask(serving, encoded(50), to="explain", outputs=[{"name": name} for name in names]))
    assert list(found) == names
    assert found["layer2.0/map"].shape == (1, 2, 2)


def test_what_limits_the_attention_is_said(serving: Service) -> None:
    assert ask(serving, encoded(50), to="explain").json()["parameters"] == {"notes": "; ".join(CARD.notes)}
    assert "parameters" not in ask(serving, encoded(50)).json()
    serving.engine.card = dataclasses.replace(CARD, warm_start=True)
    assert ask(serving, encoded(50)).json()["parameters"] == {"notes": "; ".join(CARD.notes)}


def _post(serving: Service, content: bytes, **headers: str) -> Response:
    return serving.client.post(f"{MODEL}/infer", content=content, headers=headers)


TEXT = json.dumps({"inputs": [encoded(1)]}).encode()
BAD: dict[str, tuple[int, str, Any]] = {
    "empty": (400, "bad_request", lambda s: _post(s, b"")),
    "no JSON": (400, "bad_request", lambda s: _post(s, b"{")),
    "nested without end": (400, "bad_request", lambda s: _post(s, b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}")),
    "no object": (400, "bad_request", lambda s: _post(s, b"[]")),
    "no input": (400, "bad_request", lambda s: ask(s)),
    "two inputs": (400, "bad_request", lambda s: ask(s, encoded(1), pixels(1))),
    "a shape of text": (400, "bad_request", lambda s: ask(s, encoded(1) | {"shape": ["1"]})),
    "no base64": (400, "bad_request", lambda s: ask(s, encoded(1) | {"data": ["no base64!"]})),
    "a length over the body": (400, "bad_request", lambda s: _post(s, b"{}", **{LENGTH: "3"})),
    "a length of words": (400, "bad_request", lambda s: _post(s, b"{}", **{LENGTH: "two"})),
    "a length of many digits": (400, "bad_request", lambda s: _post(s, b"{}", **{LENGTH: "0" * 9000})),
    "bytes that no tensor has": (400, "bad_request", lambda s: _post(s, TEXT + b"x", **{LENGTH: str(len(TEXT))})),
    "no classes": (400, "bad_request", lambda s: ask(s, encoded(1), outputs=[_classes(0)])),
    "gzip": (415, "unsupported_media_type", lambda s: _post(s, b"x", **{"content-encoding": "gzip"})),
    "another input": (422, "bad_parameter", lambda s: ask(s, encoded(1) | {"name": "photo"})),
    "another datatype": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"datatype": "FP32"})),
    "no image": (422, "bad_parameter", lambda s: ask(s, encoded())),
    "no dimension": (422, "bad_parameter", lambda s: ask(s, encoded(1) | {"shape": []})),
    "a dimension more": (422, "bad_parameter", lambda s: ask(s, encoded(1) | {"shape": [1, 1]})),
    "another size": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"shape": [1, 9, 9, 3]})),
    "fewer images than told": (422, "bad_parameter", lambda s: ask(s, encoded(1) | {"shape": [2]})),
    "no data": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": None})),
    "data that are no list": (422, "bad_parameter", lambda s: ask(s, encoded(1) | {"data": "text"})),
    "fewer numbers": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": [[1, 2, 3]]})),
    "256": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": [256] * 192})),
    "-1": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": [-1] * 192})),
    "fractions": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": [0.5] * 192})),
    "texts for numbers": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": ["a"] * 192})),
    "objects for numbers": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": {"0": 1}})),
    "lists and numbers": (422, "bad_parameter", lambda s: ask(s, pixels(1) | {"data": [[1], 2]})),
    "binary pixels cut": (422, "bad_parameter", lambda s: ask_binary(s, pixels(1), bytes(191))),
    "an element cut": (422, "bad_parameter", lambda s: ask_binary(s, encoded(1), bytes_tensor(picture())[:-1])),
    "a length cut": (422, "bad_parameter", lambda s: ask_binary(s, encoded(1), b"\1\0")),
    "an element more": (422, "bad_parameter", lambda s: ask_binary(s, encoded(1), bytes_tensor(b"a", b"b"))),
    "another output": (422, "bad_parameter", lambda s: ask(s, encoded(1), outputs=[{"name": "layer1.0/map"}])),
    "an output twice": (422, "bad_parameter", lambda s: ask(s, encoded(1), outputs=[_classes(1)] * 2)),
    "more classes": (422, "bad_parameter", lambda s: ask(s, encoded(1), outputs=[_classes(CLASSES + 1)])),
    "classes of maps": (
        422,
        "bad_parameter",
        lambda s: ask(s, encoded(1), to="explain", outputs=[_classes(1) | {"name": "layer1.0/map"}]),
    ),
}


def _classes(count: int) -> dict[str, Any]:
    return {"name": "probabilities", "parameters": {"classification": count}}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_what_is_wrong(serving: Service, name: str) -> None:
    status, code, send = BAD[name]
    problem = refused(send(serving), status, code)
    assert problem["error"] == problem["detail"]
    assert serving.engine.batches == []


def test_too_many_images_are_refused_by_their_shape() -> None:
    with service(max_images=2) as serving:
        refused(ask(serving, encoded(1, 2, 3)), 413, "too_many_images")
        refused(ask(serving, pixels(1) | {"shape": [10**18, CARD.size, CARD.size, 3]}), 413, "too_many_images")


@pytest.mark.parametrize("to", ["infer", "explain"])
def test_admission_stands_before_the_body(to: str) -> None:
    with service(max_requests=1, max_body_bytes=100) as serving:
        refused(serving.client.post(f"{MODEL}/{to}", content=b"x" * 101), 413, "body_too_large")
        serving.load.requests = 1
        refused(serving.client.post(f"/v2/models/another/{to}"), 503, "overloaded")


def test_a_route_is_counted_by_its_pattern(serving: Service) -> None:
    ask(serving, encoded(50))
    serving.client.post("/v2/models/another/infer")
    route = "/v2/models/{name}/infer"
    assert [serving.metric("nam_requests_total", route=route, status=status) for status in ("200", "404")] == [1, 1]


def test_health_needs_no_key_and_all_else_does() -> None:
    with service(api_keys="one") as serving:
        assert [serving.client.get(f"/v2/health/{which}").status_code for which in ("live", "ready")] == [200, 200]
        for path in ("/v2", MODEL, f"{MODEL}/ready"):
            problem = refused(serving.client.get(path), 401, "unauthorized")
            assert problem["error"] == problem["detail"]
        refused(ask(serving, encoded(50)), 401, "unauthorized")


def test_what_the_router_refuses_below_v2_has_its_error_too(serving: Service) -> None:
    for answer, code in (
        (serving.client.get("/v2/nothing"), "not_found"),
        (serving.client.post("/v2"), "method_not_allowed"),
    ):
        problem = refused(answer, answer.status_code, code)
        assert problem["error"] == problem["detail"]


def test_an_engine_error_is_ours(serving: Service) -> None:
    serving.engine.error = RuntimeError("CUDA error")
    assert refused(ask(serving, pixels(1, 2)), 500, "internal_error")["error"]


def test_the_callers_deadline_passes(serving: Service) -> None:
    serving.engine.gate.clear()
    answer = serving.client.post(f"{MODEL}/infer", json={"inputs": [pixels(1)]}, headers={"x-timeout-ms": "60"})
    serving.engine.gate.set()
    refused(answer, 504, "deadline_exceeded")
