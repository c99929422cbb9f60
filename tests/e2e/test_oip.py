"""The Open Inference Protocol v2, spoken to a real process by a client that is not ours: Triton's, ``tritonclient``."""

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from app.images import decode
from tests.e2e.conftest import Process

MODEL = "resnet18-nam-tiny-imagenet"
CLASSES = 200
JPEG = {"content-type": "image/jpeg"}
# A forward of several images rounds otherwise than that of one, in bfloat16 visibly.
CLOSE = {"rtol": 0, "atol": 0.02}


@pytest.fixture(scope="module")
def triton(serving: Process) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(serving.url.removeprefix("http://"), concurrency=4) as client:
        yield client


def images(*photos: Path, binary: bool = True) -> InferInput:
    """Encoded photos, as they are or as base64 in the JSON."""
    elements = [photo.read_bytes() for photo in photos]
    data = np.array(elements if binary else [base64.b64encode(element) for element in elements], object)
    return InferInput("image", list(data.shape), "BYTES").set_data_from_numpy(data, binary_data=binary)


def pixels(*photos: Path, binary: bool = True) -> InferInput:
    """What the service makes of the photos itself, (n, 64, 64, 3)."""
    seen = [decode(photo.read_bytes(), size=64, crop=1.0, max_pixels=10**6).pixels for photo in photos]
    data = np.stack(seen).transpose(0, 2, 3, 1)
    return InferInput("pixels", list(data.shape), "UINT8").set_data_from_numpy(data, binary_data=binary)


def predicted(serving: Process, photo: Path, top_k: int = CLASSES) -> list[dict]:
    answer = httpx2.post(f"{serving.url}/predict?top_k={top_k}", content=photo.read_bytes(), headers=JPEG, timeout=60)
    return answer.json()["predictions"]


def row(predictions: list[dict]) -> np.ndarray:
    """Probabilities in the order of the classes."""
    return np.array([one["probability"] for one in sorted(predictions, key=lambda one: one["index"])])


def test_live_ready_and_of_one_model(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(MODEL)
    assert not triton.is_model_ready("another")


def test_the_metadata_fits_what_is_answered(triton: InferenceServerClient, photos: dict[str, Path]) -> None:
    assert set(triton.get_server_metadata()["extensions"]) == {"binary_tensor_data", "classification", "explain"}
    told = triton.get_model_metadata(MODEL)
    for tensor, sent in zip(told["inputs"], (images(photos["cat"]), pixels(photos["cat"])), strict=True):
        assert (tensor["name"], tensor["datatype"]) == (sent.name(), sent.datatype())
        assert tensor["shape"] == [-1, *sent.shape()[1:]]
    assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, CLASSES]}]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("tensor", [images, pixels])
def test_both_inputs_in_both_ways_give_the_answers_of_predict(
    serving: Process, triton: InferenceServerClient, photos: dict[str, Path], tensor, binary: bool
) -> None:
    both = [photos["cat"], photos["espresso"]]
    outputs = [InferRequestedOutput("probabilities", binary_data=binary)]
    found = triton.infer(MODEL, [tensor(*both, binary=binary)], outputs=outputs, request_id="forty-two")
    assert found.get_response()["id"] == "forty-two"
    table = found.as_numpy("probabilities")
    assert (table.dtype, table.shape) == (np.float32, (2, CLASSES))
    assert np.allclose(table, [row(predicted(serving, photo)) for photo in both], **CLOSE)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_classification_gives_the_labels_of_predict(
    serving: Process, triton: InferenceServerClient, photos: dict[str, Path], binary: bool
) -> None:
    outputs = [InferRequestedOutput("probabilities", binary_data=binary, class_count=3)]
    (found,) = triton.infer(MODEL, [images(photos["espresso"])], outputs=outputs).as_numpy("probabilities")
    told = predicted(serving, photos["espresso"], top_k=3)
    texts = [text.decode() if isinstance(text, bytes) else text for text in found]
    assert [text.split(":", 2)[1:] for text in texts] == [[str(one["index"]), one["label"]] for one in told]
    assert [float(text.split(":")[0]) for text in texts] == pytest.approx(
        [one["probability"] for one in told], rel=1e-3
    )


def test_a_request_full_of_images_keeps_their_order(triton: InferenceServerClient, photos: dict[str, Path]) -> None:
    alone = [triton.infer(MODEL, [images(photos[name])]).as_numpy("probabilities")[0] for name in ("cat", "espresso")]
    many = triton.infer(MODEL, [pixels(*[photos["cat"], photos["espresso"]] * 16)]).as_numpy("probabilities")
    assert np.allclose(many, np.stack(alone * 16), **CLOSE)


def test_requests_side_by_side(triton: InferenceServerClient, photos: dict[str, Path]) -> None:
    names = ["cat", "espresso"] * 8
    alone = {name: triton.infer(MODEL, [images(photos[name])]).as_numpy("probabilities") for name in set(names)}
    under_way = [triton.async_infer(MODEL, [images(photos[name])]) for name in names]
    for name, request in zip(names, under_way, strict=True):
        assert np.allclose(request.get_result().as_numpy("probabilities"), alone[name], **CLOSE)


def bad(*elements: bytes) -> InferInput:
    return InferInput("image", [len(elements)], "BYTES").set_data_from_numpy(np.array(elements, object))


def grey(size: int) -> InferInput:
    data = np.zeros((1, size, size, 3), np.uint8)
    return InferInput("pixels", list(data.shape), "UINT8").set_data_from_numpy(data)


ERRORS = {
    "no image": (MODEL, lambda: bad(b"no image"), "415", "image[0]: The first bytes are of no accepted image format"),
    "another model": ("another", lambda: grey(64), "404", f"There is one model here, {MODEL}."),
    "another size": (MODEL, lambda: grey(65), "422", "pixels is UINT8 of shape [n, 64, 64, 3], n at least 1."),
    "too many images": (MODEL, lambda: bad(*[b"x"] * 33), "413", "At most 32 images a request are accepted, not 33."),
}


@pytest.mark.parametrize("name", ERRORS)
def test_the_client_reads_what_was_wrong(triton: InferenceServerClient, name: str) -> None:
    model, tensor, status, words = ERRORS[name]
    with pytest.raises(InferenceServerException) as caught:
        triton.infer(model, [tensor()])
    assert caught.value.status() == status
    assert caught.value.message().startswith(words)


def test_one_damaged_photo_among_good_ones_is_named(triton: InferenceServerClient, photos: dict[str, Path]) -> None:
    cat = photos["cat"].read_bytes()
    with pytest.raises(InferenceServerException, match=r"image\[1\]: The image begins as JPEG but is damaged"):
        triton.infer(MODEL, [bad(cat, cat[: len(cat) // 2], cat)])


def explained(serving: Process, *photos: Path, outputs: list[str]) -> InferResult:
    """The client has no call for an extension of ours, but writes and reads its bodies."""
    wanted = [InferRequestedOutput(name) for name in outputs]
    body, length = InferenceServerClient.generate_request_body([images(*photos)], outputs=wanted or None)
    headers = {"Inference-Header-Content-Length": str(length)}
    answer = httpx2.post(f"{serving.url}/v2/models/{MODEL}/explain", content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    header = int(answer.headers["Inference-Header-Content-Length"])
    return InferenceServerClient.parse_response_body(answer.content, header_length=header)


def test_explain_gives_the_numbers_of_attention(serving: Process, photos: dict[str, Path]) -> None:
    found = explained(serving, photos["cat"], photos["espresso"], outputs=[])
    asked = httpx2.post(
        f"{serving.url}/attention", content=photos["espresso"].read_bytes(), headers=JPEG, timeout=60
    ).json()
    assert found.as_numpy("probabilities").argmax(axis=1)[1] == asked["predictions"][0]["index"]
    assert len(found.get_response()["outputs"]) == 1 + 6 * len(asked["blocks"])
    for block in asked["blocks"]:
        assert found.as_numpy(f"{block['name']}/weights") == pytest.approx(np.array(block["weights"]), rel=1e-6)
        for kind in ("mean", "std", "min", "max"):
            (_, value) = found.as_numpy(f"{block['name']}/gates.{kind}")
            assert value == pytest.approx(block["gates"][kind], abs=1e-3)
        assert found.as_numpy(f"{block['name']}/map")[1] == pytest.approx(np.array(block["map"]), abs=1e-3)


def test_explain_gives_what_is_asked_for(serving: Process, photos: dict[str, Path]) -> None:
    found = explained(serving, photos["cat"], outputs=["layer4.1/map"])
    assert [output["name"] for output in found.get_response()["outputs"]] == ["layer4.1/map"]
    assert found.as_numpy("layer4.1/map").shape[0] == 1
