"""The HTTP contract, endpoint by endpoint, against the fake engine."""

import base64
import dataclasses
import io
import threading

import numpy as np
import pytest
from PIL import Image

from app import api, forward, schemas, uploads
from app.images import decode
from app.render import render
from nam.figure import PHOTO, draw
from tests.fakes import CARD, CLASSES, Service, picture, service, until

RAW = {"content-type": "image/png"}


def post(serving: Service, path: str = "/predict", level: int = 100, **options):
    return serving.client.post(path, content=picture(level), headers=RAW | options.pop("headers", {}), **options)


def test_the_three_ways_to_send_an_image_give_the_same_answer(serving: Service) -> None:
    image = picture(200)
    raw = serving.client.post("/predict", content=image, headers={"content-type": "application/octet-stream"})
    form = serving.client.post("/predict", files={"file": ("a.png", image)})
    text = serving.client.post("/predict", json={"image": base64.b64encode(image).decode()})
    assert raw.status_code == 200
    assert raw.json() == form.json() == text.json()
    assert raw.json()["predictions"][0]["index"] == 8


def test_predict_has_exactly_the_contracts_fields(serving: Service) -> None:
    answer = post(serving).json()
    schemas.PredictAnswer.model_validate(answer)
    assert answer["model"] == "fake"
    assert answer["image"] == {"format": "PNG", "width": 12, "height": 8}
    assert [p["rank"] for p in answer["predictions"]] == [1, 2, 3, 4, 5]
    assert answer["predictions"][0] | {"probability": 0} == {
        "rank": 1,
        "index": 4,
        "class_id": "n00000004",
        "label": "thing 4",
        "probability": 0,
    }
    falling = [p["probability"] for p in answer["predictions"]]
    assert falling == sorted(falling, reverse=True)


def test_every_answer_of_a_warm_start_carries_the_notes_and_no_label_alone_does_else(serving: Service) -> None:
    notes = list(CARD.notes)
    assert "notes" not in post(serving).json()
    assert post(serving, "/attention").json()["notes"] == notes
    serving.engine.card = dataclasses.replace(CARD, warm_start=True)
    files = [("file", picture(0)), ("file", picture(250))]
    assert post(serving).json()["notes"] == notes
    assert post(serving, "/attention").json()["notes"] == notes
    batch = serving.client.post("/predict/batch", files=files).json()
    assert [result["notes"] for result in batch["results"]] == [notes, notes]


def test_top_k_goes_up_to_the_number_of_classes(serving: Service) -> None:
    answer = post(serving, f"/predict?top_k={CLASSES}").json()
    assert len(answer["predictions"]) == CLASSES
    assert sum(p["probability"] for p in answer["predictions"]) == pytest.approx(1, abs=1e-6)
    assert len(post(serving, "/predict?top_k=1").json()["predictions"]) == 1


@pytest.mark.parametrize(
    ("query", "header", "label"),
    [
        ("", "", "thing 4"),
        ("?lang=zh", "en", "东西4"),
        ("?lang=en", "zh", "thing 4"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "东西4"),
        ("", "en;q=0.5, zh-TW;q=0.7", "东西4"),
        ("", "fr, en;q=0.2", "thing 4"),
        ("", "zh;q=0, fr", "thing 4"),
        ("", "zh;q=junk, en", "thing 4"),
    ],
)
def test_labels_come_in_the_callers_language(serving: Service, query: str, header: str, label: str) -> None:
    answer = post(serving, "/predict" + query, headers={"accept-language": header})
    assert answer.json()["predictions"][0]["label"] == label
    assert answer.headers["vary"] == "Accept-Language"


def test_the_first_bytes_beat_the_declared_image_type(serving: Service) -> None:
    answer = serving.client.post("/predict", content=picture(form="GIF"), headers={"content-type": "image/jpeg"})
    assert answer.json()["image"]["format"] == "GIF"


def test_exif_orientation_swaps_width_and_height(serving: Service) -> None:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(out, "JPEG", exif=exif)
    answer = serving.client.post("/predict", content=out.getvalue(), headers={"content-type": "image/jpeg"})
    assert answer.json()["image"] == {"format": "JPEG", "width": 8, "height": 12}


def test_one_bad_image_never_fails_its_neighbours(serving: Service) -> None:
    files = [("file", picture(0)), ("file", b"no image"), ("file", picture(250)), ("file", b"\x89PNG\r\n\x1a\nbroken")]
    answer = serving.client.post("/predict/batch", files=files)
    schemas.BatchAnswer.model_validate(answer.json())
    first, second, third, fourth = answer.json()["results"]
    assert [r["predictions"][0]["index"] for r in (first, third)] == [0, 9]
    assert [r["error"]["code"] for r in (second, fourth)] == ["unsupported_media_type", "bad_image"]
    assert second["error"]["request_id"] == answer.headers["x-request-id"]


def test_an_image_keeps_its_place_among_empty_parts_and_texts(serving: Service) -> None:
    parts = [("file", picture(0)), ("file", ("a.png", b"")), ("file", (None, "text")), ("file", picture(250))]
    first, second, third, fourth = serving.client.post("/predict/batch", files=parts).json()["results"]
    assert [r["predictions"][0]["index"] for r in (first, fourth)] == [0, 9]
    assert [r["error"]["code"] for r in (second, third)] == ["bad_request"] * 2


def test_a_forward_that_fails_is_an_error_in_each_of_its_places(serving: Service) -> None:
    serving.engine.error = RuntimeError("driver words")
    answer = serving.client.post("/predict/batch", files=[("file", picture()), ("file", b"no image")])
    codes = [result["error"]["code"] for result in answer.json()["results"]]
    assert (answer.status_code, codes) == (200, ["internal_error", "unsupported_media_type"])
    assert "driver" not in answer.text


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("", 200),
        ("*/*", 200),
        ("application/*;q=0.1", 200),
        ("text/html, application/json;q=0.5", 200),
        ("text/html", 406),
        ("application/json;q=0", 406),
        ("application/json; q=0.000, */*", 200),
        ("image/jpeg, audio/*", 406),
    ],
)
def test_accept_decides_by_its_most_specific_range(serving: Service, accept: str, status: int) -> None:
    answer = post(serving, "/attention", headers={"accept": accept})
    assert answer.status_code == status
    assert "Accept" in answer.headers["vary"].split(", ")
    assert post(serving, "/attention?format=json", headers={"accept": accept}).status_code == 200


@pytest.mark.parametrize(
    ("query", "accept", "form"),
    [
        ("", "image/png", "image/png"),
        ("", "application/x-npz, */*;q=0.5", "application/x-npz"),
        ("", "image/*, application/json;q=0.9", "image/png"),
        ("", "image/png;q=0.5, application/json;q=0.9", "application/json"),
        ("", "text/html,application/xml;q=0.9,image/avif,*/*;q=0.8", "application/json"),
        ("", "application/*", "application/json"),
        ("", "application/json;q=0, application/*", "application/x-npz"),
        ("?format=png", "application/json", "image/png"),
        ("?format=npz", "text/html", "application/x-npz"),
        ("?format=json", "image/png", "application/json"),
    ],
)
def test_the_form_is_the_querys_else_the_best_that_accept_allows(
    serving: Service, query: str, accept: str, form: str
) -> None:
    answer = post(serving, "/attention" + query, headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, form)
    assert answer.headers["vary"] == "Accept, Accept-Language"
    begins = {"image/png": b"\x89PNG", "application/x-npz": b"PK", "application/json": b"{"}
    assert answer.content.startswith(begins[form])
    assert "server-timing" in answer.headers


def test_an_unknown_format_is_refused_whatever_is_accepted(serving: Service) -> None:
    refused = post(serving, "/attention?format=gif", headers={"accept": "*/*"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    assert "image/png (format=png)" in refused.json()["detail"]


def test_the_three_forms_show_the_same_numbers(serving: Service) -> None:
    query = "?effects=true&channel_effects=true&method=activation&maps=all&top_channels=3"
    told = post(serving, "/attention" + query).json()
    with np.load(io.BytesIO(post(serving, f"/attention{query}&format=npz").content), allow_pickle=False) as arrays:
        for block in told["blocks"]:
            assert np.allclose(arrays[f"{block['name']}/channel_maps"], block["channel_maps"], rtol=1e-7, atol=0)
            assert np.allclose(arrays[f"{block['name']}/map_activation"], block["map_activation"], rtol=1e-7, atol=0)
            top = [channel["effect"] for channel in block["top_channels"]]
            assert np.allclose(arrays[f"{block['name']}/top_channels.effect"], top, rtol=1e-7, atol=0)
    square = decode(picture(100), size=PHOTO, crop=CARD.crop, max_pixels=10**6).pixels
    assert post(serving, f"/attention{query}&format=png").content == draw(square, told)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/model", "/attention/weights", "/metrics", "/docs"])
def test_head_answers_as_get_without_the_body(serving: Service, path: str) -> None:
    head, get = serving.client.head(path), serving.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def loop_of(serving: Service) -> str:
    return serving.client.portal.call(threading.current_thread).name


@pytest.mark.parametrize("form", ["json", "png", "npz"])
def test_whatever_is_written_the_event_loop_is_left_alone(
    serving: Service, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    threads: list[str] = []
    monkeypatch.setattr(
        api, "render", lambda *given: (threads.append(threading.current_thread().name), render(*given))[1]
    )
    assert post(serving, f"/attention?format={form}").status_code == 200
    assert len(threads) == 1
    assert loop_of(serving) not in threads


def test_what_is_not_written_by_the_deadline_is_not_waited_for(
    serving: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = threading.Event()
    monkeypatch.setattr(api, "render", lambda *given: late.wait(10))
    answer = post(serving, "/attention?format=png", headers={"x-timeout-ms": "200"})
    late.set()
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


def test_large_bodies_and_all_decoding_leave_the_event_loop_alone(
    serving: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    loop = loop_of(serving)
    monkeypatch.setattr(
        forward, "decode", lambda *a, **k: (threads.append(threading.current_thread().name), decode(*a, **k))[1]
    )
    b64 = base64.b64decode
    monkeypatch.setattr(
        uploads.base64, "b64decode", lambda *a, **k: (threads.append(threading.current_thread().name), b64(*a, **k))[1]
    )
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    answer = serving.client.post("/predict", json={"image": base64.b64encode(out.getvalue()).decode()})
    assert answer.status_code == 200
    assert len(threads) == 2
    assert loop not in threads


def test_a_batch_of_only_bad_images_is_still_200(serving: Service) -> None:
    answer = serving.client.post("/predict/batch", json={"images": ["***", base64.b64encode(b"junk").decode(), 7]})
    assert answer.status_code == 200
    codes = [result["error"]["code"] for result in answer.json()["results"]]
    assert codes == ["bad_request", "unsupported_media_type", "bad_request"]


def test_attention_has_exactly_the_contracts_fields(serving: Service) -> None:
    answer = post(serving, "/attention").json()
    schemas.AttentionAnswer.model_validate(answer)
    first = answer["blocks"][0]
    assert [block["name"] for block in answer["blocks"]] == ["layer1.0", "layer2.0"]
    assert (first["channels"], first["height"], first["width"], first["effect"]) == (4, 4, 4, None)
    assert sum(first["weights"]) == pytest.approx(1, abs=1e-6)
    assert [top["channel"] for top in first["top_channels"]] == [1, 3, 2, 0]
    assert first["top_channels"][0]["weight"] == first["weights"][1]
    assert np.shape(first["map"]) == np.shape(first["top_channels"][0]["map"]) == (4, 4)
    assert answer["predictions"] == post(serving).json()["predictions"]
    assert answer["notes"] == list(CARD.notes)


def test_the_map_is_the_weighted_sum_of_the_channel_maps(serving: Service) -> None:
    block = post(serving, "/attention?maps=all&block=layer1.0").json()["blocks"][0]
    assert np.allclose(np.tensordot(block["weights"], block["channel_maps"], 1), block["map"], atol=1e-6)
    assert block["channel_maps"][3] == block["top_channels"][1]["map"]
    assert np.mean(block["channel_maps"]) == pytest.approx(block["gates"]["mean"], abs=1e-6)


def test_blocks_channels_maps_and_effects_are_chosen(serving: Service) -> None:
    answer = post(serving, "/attention?block=layer2.0&top_channels=2&maps=none&effects=true").json()
    (block,) = answer["blocks"]
    assert block["name"] == "layer2.0"
    assert block["map"] is None
    assert block["effect"] == 0.5
    assert [top["effect"] for top in block["top_channels"]] == [None, None]
    assert [top["map"] for top in block["top_channels"]] == [None, None]
    assert "channel_maps" not in block


def test_the_strongest_channels_have_their_effects_where_they_are_asked_for(serving: Service) -> None:
    (block,) = post(serving, "/attention?block=layer1.0&top_channels=3&channel_effects=true").json()["blocks"]
    assert block["effect"] is None
    assert [top["effect"] for top in block["top_channels"]] == [0.25, 0.0, -0.25]


def test_channel_effects_are_bounded_by_the_channels_that_there_are(serving: Service) -> None:
    assert post(serving, "/attention?top_channels=9999&channel_effects=true").status_code == 200
    wide = tuple(dataclasses.replace(block, weights=np.full(200, 0.005, np.float32)) for block in CARD.blocks)
    serving.engine.card = dataclasses.replace(CARD, blocks=wide)
    refused = post(serving, "/attention?top_channels=129&channel_effects=true")
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_parameter")
    assert "here 258; at most 256" in refused.json()["detail"]
    assert serving.engine.batches == [1]


@pytest.mark.parametrize("query", ["maps=all", "format=npz&maps=none", "top_channels=9999"])
def test_an_answer_of_too_many_numbers_is_refused(serving: Service, query: str) -> None:
    large = tuple(dataclasses.replace(block, height=2048, width=2048) for block in CARD.blocks)
    serving.engine.card = dataclasses.replace(CARD, blocks=large)
    refused = post(serving, f"/attention?{query}")
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_parameter")
    assert f"at most {2**23}" in refused.json()["detail"]
    assert serving.engine.batches == []


def test_an_empty_format_is_as_none(serving: Service) -> None:
    answer = post(serving, "/attention?format=", headers={"accept": "text/html"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


def test_further_kinds_of_map_are_fields_of_the_blocks_that_have_them(serving: Service) -> None:
    answer = post(serving, "/attention?method=class&method=activation&maps=none").json()
    schemas.AttentionAnswer.model_validate(answer)
    first, last = answer["blocks"]
    assert np.shape(first["map_activation"]) == (4, 4)
    assert "map_class" not in first
    assert np.shape(last["map_class"]) == np.shape(last["map_activation"]) == (2, 2)
    assert last["map"] is None
    assert not any(key.startswith("map_") for key in post(serving, "/attention").json()["blocks"][1])


def test_an_unknown_method_is_refused_and_the_known_ones_are_named(serving: Service) -> None:
    refused = post(serving, "/attention?method=class&method=magic")
    assert (refused.status_code, refused.json()["detail"]) == (422, "method is one of activation, class.")
    assert serving.client.get("/model").json()["methods"] == ["activation", "class"]


def test_a_picture_without_maps_is_refused(serving: Service) -> None:
    refused = post(serving, "/attention?maps=none&format=png")
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_parameter")
    assert post(serving, "/attention?maps=none&format=npz").status_code == 200


def test_a_network_without_nam_answers_with_no_blocks_and_has_none_to_choose(serving: Service) -> None:
    serving.engine.card = dataclasses.replace(CARD, blocks=())
    answer = post(serving, "/attention?effects=true")
    assert (answer.status_code, answer.json()["blocks"]) == (200, [])
    assert len(answer.json()["predictions"]) == 5
    refused = post(serving, "/attention?block=layer1.0")
    assert (refused.status_code, refused.json()["detail"]) == (422, "The network has no NAM blocks.")
    assert post(serving, "/attention?format=png").status_code == 200
    assert post(serving, "/attention?format=npz").status_code == 200


def test_attention_weights_are_cacheable(serving: Service) -> None:
    first = serving.client.get("/attention/weights")
    schemas.WeightsAnswer.model_validate(first.json())
    assert first.headers["etag"] == f'"{CARD.sha256}"'
    again = serving.client.get("/attention/weights", headers={"if-none-match": f'"other", W/"{CARD.sha256}"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["cache-control"] == first.headers["cache-control"] == "no-cache"
    assert serving.client.get("/attention/weights", headers={"if-none-match": '"other"'}).status_code == 200


def test_the_model_card_says_what_is_served(serving: Service) -> None:
    card = serving.client.get("/model").json()
    schemas.ModelAnswer.model_validate(card)
    assert (card["name"], card["classes"], card["sha256"], card["engine"]) == ("fake", CLASSES, CARD.sha256, "fake")
    assert card["input"]["size"] == 8


def test_health_and_readiness(serving: Service) -> None:
    assert serving.client.get("/healthz").json() == {"status": "ok"}
    assert serving.client.get("/readyz").json() == {"status": "ready"}


def test_concurrent_requests_share_a_batch_and_everybody_is_told(serving: Service) -> None:
    serving.engine.gate.clear()
    answers: list = []
    callers = [threading.Thread(target=lambda: answers.append(post(serving))) for _ in range(6)]
    callers[0].start()
    until(lambda: serving.engine.batches == [1])
    for caller in callers[1:]:
        caller.start()
    until(lambda: serving.metric("nam_queue_depth") == 5)
    serving.engine.gate.set()
    for caller in callers:
        caller.join()
    assert serving.engine.batches == [1, 5]
    assert sorted(answer.headers["x-batch-size"] for answer in answers) == ["1", "5", "5", "5", "5", "5"]
    assert serving.metric("nam_batch_size_count") == 2
    assert serving.metric("nam_batch_size_sum") == 6


def test_answers_carry_the_time_of_each_step(serving: Service) -> None:
    timing = dict(step.split(";dur=") for step in post(serving).headers["server-timing"].split(", "))
    assert list(timing) == ["decode", "queue", "model"]
    assert all(float(value) >= 0 for value in timing.values())


def test_metrics_count_requests_by_route_and_status(serving: Service) -> None:
    post(serving)
    post(serving, "/predict?top_k=0")
    assert serving.metric("nam_requests_total", route="/predict", status="200") == 1
    assert serving.metric("nam_requests_total", route="/predict", status="422") == 1
    assert serving.metric("nam_refusals_total", code="bad_parameter") == 1
    assert serving.metric("nam_requests_in_flight") == 0
    assert serving.metric("nam_body_bytes_in_flight") == 0


def test_docs_load_nothing_from_elsewhere(serving: Service) -> None:
    page = serving.client.get("/docs")
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    sources = [part.split('"')[0] for mark in ('src="', 'href="/') for part in page.text.split(mark)[1:]]
    assert len(sources) == 4
    assert "//" not in page.text
    for source in sources:
        asset = serving.client.get(source if source.startswith("/") else "/" + source)
        assert asset.status_code == 200, source


def test_the_openapi_document_names_every_route(serving: Service) -> None:
    paths = serving.client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/predict",
        "/predict/batch",
        "/attention",
        "/attention/weights",
        "/model",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}",
        "/v2/models/{name}/ready",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/explain",
    }
    assert set(paths["/predict"]["post"]["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    answers = paths["/attention"]["post"]["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "image/png", "application/x-npz"}
    assert answers["image/png"]["schema"] == {"type": "string", "format": "binary"}


def test_many_images_within_the_limit_are_answered_in_order() -> None:
    with service(max_images=3) as serving:
        files = [("file", picture(level)) for level in (25, 75, 225)]
        results = serving.client.post("/predict/batch?top_k=1", files=files).json()["results"]
    assert [result["predictions"][0]["index"] for result in results] == [1, 3, 9]
