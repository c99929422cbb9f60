"""An attention in the form that its caller reads: JSON, arrays, a picture. Each says the same numbers.

All of it is written in a thread, and no single step of it holds the interpreter's lock for long: JSON, which maps of
every channel make 9 MB of, is written map by map and comes in a piece a block.
"""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.engine import AttentionAsk, Card, Maps
from app.forward import Done
from app.images import Picture
from app.schemas import Language, attention_answer
from nam.figure import PHOTO, draw

# What a form is called in ?format= and in Accept; the first is the default.
FORMS = {"json": "application/json", "png": "image/png", "npz": "application/x-npz"}

# The side of the photo that a form shows.
PHOTOS = {"png": PHOTO}


def ask_for(form: str, ask: AttentionAsk) -> AttentionAsk:
    """The ask with the maps that the form shows: arrays are of every channel, a picture is of the strongest."""
    maps: dict[str, Maps] = {"npz": "all", "png": "top"}
    return replace(ask, maps=maps.get(form, ask.maps))


def render(form: str, card: Card, done: Done, photo: Picture | None, language: Language) -> list[bytes]:
    """In pieces. ``photo``: where the form shows it, of the side that PHOTOS tells: larger than the network sees it. A
    picture is in English."""
    if photo is not None:
        return [draw(photo.pixels, attention_answer(card, done, "en"))]
    content = attention_answer(card, done, language)
    return [to_npz(content)] if form == "npz" else to_json(content)


def to_json(content: dict[str, Any]) -> list[bytes]:
    """``blocks``, the last member, block by block."""
    rest = {key: value for key, value in content.items() if key != "blocks"}
    pieces = [orjson.dumps(block, default=_map_by_map) for block in content["blocks"]]
    return [orjson.dumps(rest)[:-1] + b',"blocks":[' + b"".join(pieces[:1]), *(b"," + p for p in pieces[1:]), b"]}"]


def _map_by_map(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim > 2:
        return list(value)
    if isinstance(value, np.ndarray | np.generic):
        return orjson.Fragment(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    raise TypeError(type(value))


def to_npz(content: dict[str, Any]) -> bytes:
    """What ``np.load`` reads with ``allow_pickle=False``. The names are the JSON's: ``predictions.probability``, a
    block's behind its own name, ``layer1.0/gates.mean``; lists of objects are columns; what is null or empty is left
    out. Not compressed, gates hardly can be; the same content gives the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in _arrays(content):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return out.getvalue()


def _arrays(content: dict[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", array) for name, array in _arrays(value))
        elif key == "blocks":
            yield from ((f"{block['name']}/{name}", array) for block in value for name, array in _arrays(block))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            columns = {name: [row[name] for row in value] for name in value[0] if value[0][name] is not None}
            yield from ((f"{key}.{name}", array) for name, array in _arrays(columns))
        elif value is not None and len(np.atleast_1d(value)):
            yield key, np.asarray(value)
