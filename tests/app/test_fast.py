"""The short way of the usual request: whatever it answers, the endpoint would have answered."""

import pytest

from app import fast
from tests.fakes import Service, picture, service

PNG = {"content-type": "image/png"}
OWN = {"x-request-id", "server-timing"}


def told(answer) -> tuple[int, dict[str, str], bytes]:
    return answer.status_code, {k: v for k, v in answer.headers.items() if k not in OWN}, answer.content


def both(serving: Service, body: bytes, headers: dict[str, str]):
    """The short way's answer and the endpoint's, which a query that says the default reaches."""
    return [told(serving.client.post(path, content=body, headers=headers)) for path in ("/predict", "/predict?top_k=5")]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each request that takes the short way."""
    taken, predict = [], fast._predict

    async def counted(scope, receive, send) -> None:
        taken.append(scope["path"])
        await predict(scope, receive, send)

    monkeypatch.setattr(fast, "_predict", counted)
    return taken


@pytest.mark.parametrize(
    "headers",
    [PNG, {"content-type": "application/octet-stream"}, {"content-type": "image/jpeg; q=1"}, {}],
    ids=["image", "bytes", "with a parameter", "undeclared"],
)
def test_it_answers_as_the_endpoint_does(short: list[str], serving: Service, headers: dict[str, str]) -> None:
    one, other = both(serving, picture(200), headers)
    assert one[0] == 200
    assert one == other
    assert short == ["/predict"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
def test_every_format_is_the_same_either_way(short: list[str], serving: Service, form: str) -> None:
    one, other = both(serving, picture(50, form), PNG)
    assert one == other
    assert short == ["/predict"]


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"nothing known", 415), (picture()[:40], 422)], ids=["empty", "unknown", "cut"]
)
def test_it_refuses_as_the_endpoint_does(short: list[str], serving: Service, body: bytes, status: int) -> None:
    answers = [serving.client.post(path, content=body, headers=PNG) for path in ("/predict", "/predict?top_k=5")]
    problems = [answer.json() | {"request_id": ""} for answer in answers]
    assert problems[0] == problems[1]
    assert problems[0]["status"] == status
    assert short == ["/predict"]
    assert serving.metric("nam_refusals_total", code=problems[0]["code"]) == 2


def test_a_body_in_pieces_is_put_together(short: list[str], serving: Service) -> None:
    image = picture(200)
    pieces = iter([image[:10], image[10:11], image[11:]])
    answer = serving.client.post("/predict", content=pieces, headers=PNG)
    assert answer.json() == serving.client.post("/predict?top_k=5", content=image, headers=PNG).json()
    assert short == ["/predict"]


def test_a_small_network_gives_all_its_labels_and_a_warm_start_its_notes(short: list[str]) -> None:
    with service(max_pixels=10**6) as serving:
        one, other = both(serving, picture(0), PNG)
    assert one == other


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/predict?lang=zh", PNG),
        ("/predict", PNG | {"accept-language": "zh"}),
        ("/predict", {"content-type": "application/json"}),
        ("/predict", PNG | {"content-encoding": "gzip"}),
        ("/attention", PNG),
    ],
    ids=["query", "language", "json", "encoded", "attention"],
)
def test_whoever_asks_for_more_goes_to_the_endpoint(
    short: list[str], serving: Service, path: str, headers: dict[str, str]
) -> None:
    serving.client.post(path, content=picture(), headers=headers)
    assert short == []


def test_another_method_is_the_routers_to_refuse(short: list[str], serving: Service) -> None:
    assert serving.client.get("/predict").status_code == 405
    assert short == []
