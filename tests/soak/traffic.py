"""What callers send, good and hostile, and what each must be answered: ``good`` and ``hostile`` draw one thing each."""

import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import ERRORS
from tests.chaos.service import photo
from tests.hostile.corpus import Case, cases
from tests.soak.client import Caller, Reply, Request

# The most that a probability may differ from that of the same image alone, bf16 and other batch sizes being what they
# are; two images of the traffic differ by three times as much at least.
NEAR = 0.02
IMAGES = 200
JPEG = (("Content-Type", "image/jpeg"),)
JSON = (("Content-Type", "application/json"),)
STATUS = {error.code: error.status for error in ERRORS}

Check = Callable[[Reply], str]  # what is wrong, or nothing


@dataclass(frozen=True, slots=True)
class Shot:
    """One request and its check. ``patient``: nothing but a good answer will do; else 503 and 504 are asked for."""

    name: str
    request: Request
    check: Check
    patient: bool = True


@dataclass(frozen=True, slots=True)
class Known:
    """An image, every label's probability when it was alone, and, of some, its attention as a small picture."""

    image: bytes
    probabilities: NDArray[np.float64]
    figure: NDArray[np.float64] | None


async def learn(caller: Caller, classes: int) -> list[Known]:
    """Images whose answers cannot be taken for each other's."""
    known: list[Known] = []
    for seed in range(10 * IMAGES):
        image = photo(seed, side=48 + seed % 300)
        told = json.loads((await caller.ask(Request("POST", f"/predict?top_k={classes}", image, JPEG))).body)
        probabilities = np.zeros(classes)
        for one in told["predictions"]:
            probabilities[one["index"]] = one["probability"]
        if all(np.abs(probabilities - other.probabilities).max() > 3 * NEAR for other in known):
            figure = await _figure_of(caller, image) if len(known) % 10 == 0 else None
            known.append(Known(image, probabilities, figure))
        if len(known) == IMAGES:
            return known
    raise RuntimeError(f"only {len(known)} images with answers of their own")


async def _figure_of(caller: Caller, image: bytes) -> NDArray[np.float64]:
    return _small((await caller.ask(Request("POST", "/attention?format=png", image, JPEG))).body)


class Traffic:
    def __init__(self, known: list[Known], model: str, seed: int = 0) -> None:
        self._chance, self._model = random.Random(seed), model  # noqa: S311 - the same every time
        self._known, self._drawn = known, [one for one in known if one.figure is not None]
        self._corpus = list(cases())
        self._chance.shuffle(self._corpus)
        self._next = 0

    def good(self) -> Shot:
        ways = {self._raw: 40, self._form: 8, self._json: 8, self._batch: 10, self._attention: 10, self._npz: 5}
        ways |= {self._png: 3, self._oip: 8, self._page: 8}
        return self._chance.choices(list(ways), list(ways.values()))[0]()

    def hostile(self) -> Shot:
        return self._chance.choices([self._case, self._bad_request, self._hasty], [8, 2, 1])[0]()

    def leaver(self) -> Request:
        one = self._one()
        return self._chance.choice(
            [
                Request("POST", "/predict", one.image, JPEG),
                Request("POST", "/attention?maps=all", one.image, JPEG),
                Request("POST", "/attention?format=npz", one.image, JPEG),
            ]
        )

    def _one(self) -> Known:
        return self._chance.choice(self._known)

    def _raw(self) -> Shot:
        one = self._one()
        return Shot("predict", Request("POST", "/predict", one.image, JPEG), lambda reply: _labels(reply, one))

    def _form(self) -> Shot:
        one = self._one()
        body, headers = _form([one.image])
        return Shot("predict, form", Request("POST", "/predict", body, headers), lambda reply: _labels(reply, one))

    def _json(self) -> Shot:
        one = self._one()
        body = json.dumps({"image": base64.b64encode(one.image).decode()}).encode()
        return Shot("predict, JSON", Request("POST", "/predict", body, JSON), lambda reply: _labels(reply, one))

    def _batch(self) -> Shot:
        """One of them is damaged."""
        some = [self._one() for _ in range(self._chance.randint(2, 6))]
        bad = self._chance.randrange(len(some))
        body, headers = _form([one.image[: 300 if place == bad else None] for place, one in enumerate(some)])

        def check(reply: Reply) -> str:
            results = json.loads(reply.body)["results"]
            if results[bad].get("error", {}).get("code") != "bad_image" or len(results) != len(some):
                return "the damaged one is not told apart"
            pairs = [(said, one) for place, (said, one) in enumerate(zip(results, some, strict=True)) if place != bad]
            return next((wrong for said, one in pairs if (wrong := _near(said["predictions"], one))), "")

        return Shot("batch", Request("POST", "/predict/batch", body, headers), check)

    def _attention(self) -> Shot:
        one, query = self._one(), self._chance.choice(["", "?maps=none", "?maps=all", "?method=product&block=layer3.0"])
        return Shot(
            "attention", Request("POST", "/attention" + query, one.image, JPEG), lambda reply: _labels(reply, one)
        )

    def _npz(self) -> Shot:
        one = self._one()

        def check(reply: Reply) -> str:
            with np.load(io.BytesIO(reply.body), allow_pickle=False) as told:
                pairs = zip(told["predictions.index"], told["predictions.probability"], strict=True)
                return _near([{"index": i, "probability": p} for i, p in pairs], one)

        return Shot("attention, npz", Request("POST", "/attention?format=npz", one.image, JPEG), check)

    def _png(self) -> Shot:
        one = self._chance.choice(self._drawn)

        def check(reply: Reply) -> str:
            apart = float(np.abs(_small(reply.body) - one.figure).mean())
            return "" if apart < 2 else f"a picture {apart:.1f} grey levels from the image's own"

        return Shot("attention, png", Request("POST", "/attention?format=png", one.image, JPEG), check)

    def _oip(self) -> Shot:
        some = [self._one() for _ in range(self._chance.randint(1, 4))]
        data = [base64.b64encode(one.image).decode() for one in some]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(some)], "data": data}

        def check(reply: Reply) -> str:
            output = json.loads(reply.body)["outputs"][0]
            rows = np.array(output["data"]).reshape(output["shape"])
            apart = max(np.abs(row - one.probabilities).max() for row, one in zip(rows, some, strict=True))
            return "" if apart < NEAR else f"a probability off by {apart:.3f}"

        body = json.dumps({"inputs": [tensor]}).encode()
        return Shot("OIP", Request("POST", f"/v2/models/{self._model}/infer", body, JSON), check)

    def _page(self) -> Shot:
        path = self._chance.choice(["/", "/metrics", "/model", "/readyz", "/attention/weights", "/openapi.json"])
        return Shot("pages", Request("GET", path), lambda reply: "" if len(reply.body) > 10 else "an empty answer")

    def _case(self) -> Shot:
        case = self._corpus[self._next % len(self._corpus)]
        self._next += 1
        headers = (("Content-Type", case.media_type),)
        return Shot("corpus", Request("POST", "/predict", case.data, headers), lambda reply: _expected(reply, case))

    def _bad_request(self) -> Shot:
        image = self._one().image
        path, body, headers, code = self._chance.choice(
            [
                ("/predict", b"{", JSON, "bad_request"),
                ("/predict", b'{"image": "!"}', JSON, "bad_request"),
                ("/predict?top_k=0", image, JPEG, "bad_parameter"),
                ("/predict", image, (("Content-Type", "text/plain"),), "unsupported_media_type"),
                ("/predict", image, (*JPEG, ("Content-Encoding", "gzip")), "unsupported_media_type"),
                ("/predict/batch", *_form([image] * 33), "too_many_images"),
                ("/nowhere", image, JPEG, "not_found"),
                ("/attention?block=layer9", image, JPEG, "bad_parameter"),
                ("/predict", b"x" * 100, (("Content-Type", "multipart/form-data; boundary=x"),), "bad_request"),
            ]
        )
        return Shot("bad request", Request("POST", path, body, headers), lambda reply: _refused(reply, code))

    def _hasty(self) -> Shot:
        """A deadline that can hardly be met."""
        one, headers = self._one(), (*JPEG, ("X-Timeout-Ms", str(self._chance.randint(1, 30))))
        request = Request("POST", "/predict", one.image, headers)
        return Shot("hasty", request, lambda reply: _labels(reply, one), patient=False)


def _form(images: list[bytes]) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    parts = [
        b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n' % one for one in images
    ]
    return b"".join(parts) + b"--b0undary--\r\n", (("Content-Type", "multipart/form-data; boundary=b0undary"),)


def _labels(reply: Reply, one: Known) -> str:
    return _near(json.loads(reply.body)["predictions"], one)


def _near(predictions: list[dict[str, float]], one: Known) -> str:
    apart = max(abs(said["probability"] - one.probabilities[int(said["index"])]) for said in predictions)
    return "" if apart < NEAR else f"a probability off by {apart:.3f}"


def _small(png: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(png)) as figure:
        return np.asarray(figure.convert("L").resize((96, 96), Image.Resampling.BOX), np.float64)


def _expected(reply: Reply, case: Case) -> str:
    code = "ok" if reply.status == 200 else json.loads(reply.body)["code"]
    return "" if code in case.answers else f"{case.name}: {code}"


def _refused(reply: Reply, code: str) -> str:
    told = json.loads(reply.body).get("code", "ok")
    return "" if (told, reply.status) == (code, STATUS[code]) else f"{told} and not {code}"
