"""Many callers at a time, every image unlike the others: each answer is checked against the image's own."""

import io
import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest

from tests.chaos.service import JPEG, Service, photo, running

COUNT = 300
NEAR = 0.02  # to an image's own probabilities, in bf16; others' are farther off
Told = list[tuple[int, float]]  # labels and their probabilities


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two workers"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("answers"), NAM_WORKERS=request.param) as one:
        yield one


def told(predictions: list[dict]) -> Told:
    return [(one["index"], one["probability"]) for one in predictions]


def predict(client: httpx2.Client, images: list[bytes]) -> list[Told]:
    return [told(client.post("/predict", content=one, headers=JPEG).json()["predictions"]) for one in images]


def batch(client: httpx2.Client, images: list[bytes]) -> list[Told]:
    answer = client.post("/predict/batch", files=[("file", one) for one in images])
    return [told(one["predictions"]) for one in answer.json()["results"]]


def attention(client: httpx2.Client, images: list[bytes]) -> list[Told]:
    answers = (client.post("/attention?maps=none", content=one, headers=JPEG) for one in images)
    return [told(one.json()["predictions"]) for one in answers]


def arrays(client: httpx2.Client, images: list[bytes]) -> list[Told]:
    found = []
    for one in images:
        answer = client.post("/attention?format=npz&block=layer4.1", content=one, headers=JPEG)
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as named:
            rows = zip(named["predictions.index"], named["predictions.probability"], strict=True)
            found.append([(int(index), float(probability)) for index, probability in rows])
    return found


def own(client: httpx2.Client, image: bytes) -> np.ndarray:
    """The probability of every label, when it is alone."""
    answer = client.post("/predict?top_k=200", content=image, headers=JPEG).json()
    return np.array([probability for _, probability in sorted(told(answer["predictions"]))])


def near(answer: Told, one: np.ndarray) -> bool:
    return all(abs(probability - one[index]) < NEAR for index, probability in answer)


def test_no_caller_gets_anothers_answer(service: Service) -> None:
    images = [photo(seed, side=48 + seed) for seed in range(COUNT)]
    with httpx2.Client(base_url=service.url, timeout=30) as client, ThreadPoolExecutor(24) as callers:
        alone = np.stack([own(client, image) for image in images])
        apart = np.abs(alone[:, None] - alone[None]).max(2) + np.eye(COUNT)
        chosen = [i for i in range(COUNT) if apart[i].min() > 2 * NEAR]
        assert len(chosen) > 100
        groups = [chosen[start : start + 5] for start in range(0, len(chosen), 5)]
        work = list(itertools.product((predict, batch, attention, arrays), groups))
        random.Random(0).shuffle(work)  # noqa: S311
        answers = callers.map(lambda one: one[0](client, [images[i] for i in one[1]]), work)
        for (_, group), answer in zip(work, answers, strict=True):
            assert all(near(said, alone[i]) for said, i in zip(answer, group, strict=True))
