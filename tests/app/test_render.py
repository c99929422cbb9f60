"""The three forms of an attention: the same numbers, whichever is asked for."""

import io

import numpy as np
import orjson
import pytest

from app import render, schemas
from app.engine import Ask, AttentionAsk
from app.forward import Done
from app.images import decode
from nam.figure import PHOTO
from tests.fakes import CARD, FakeEngine, picture

ALL = frozenset(block.name for block in CARD.blocks)
IMAGE = picture(200, size=(300, 200))
FULL = AttentionAsk(ALL, 3, "all", effects=True, channel_effects=True, methods=frozenset(CARD.methods))


def done(ask: AttentionAsk = FULL) -> Done:
    seen = decode(IMAGE, size=CARD.size, crop=CARD.crop, max_pixels=10**6)
    (answer,) = FakeEngine()([Ask(seen.pixels, 5, ask)])
    return Done(seen, answer, 0.0, 0.0)


def rendered(form: str, ask: AttentionAsk = FULL, language: schemas.Language = "en") -> bytes:
    side = render.PHOTOS.get(form)
    photo = side and decode(IMAGE, size=side, crop=CARD.crop, max_pixels=10**6)
    return b"".join(render.render(form, CARD, done(render.ask_for(form, ask)), photo, language))


def arrays(ask: AttentionAsk = FULL) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(rendered("npz", ask)), allow_pickle=False) as loaded:
        return dict(loaded)


def test_json_is_what_one_call_would_write() -> None:
    assert rendered("json") == schemas.to_json(schemas.attention_answer(CARD, done(), "en"))


def test_json_holds_the_lock_for_one_map_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    written, dumps = [], orjson.dumps
    monkeypatch.setattr(orjson, "dumps", lambda value, **k: written.append(np.ndim(value)) or dumps(value, **k))
    rendered("json")
    assert max(written) == 2


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        render.to_json({"blocks": [{"set": {1}}]})


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_json_is_whole_for_any_number_of_blocks(blocks: int) -> None:
    told = orjson.loads(rendered("json", AttentionAsk(frozenset(sorted(ALL)[:blocks]))))
    assert [block["name"] for block in told["blocks"]] == sorted(ALL)[:blocks]


def test_the_arrays_are_the_jsons_numbers_by_the_same_names() -> None:
    told, found = orjson.loads(rendered("json")), arrays()
    assert found["predictions.probability"].tolist() == [p["probability"] for p in told["predictions"]]
    assert found["predictions.label"].tolist() == [p["label"] for p in told["predictions"]]
    for block in told["blocks"]:
        name = block["name"]
        for part in ("weights", "map", "effect", "channel_maps", "map_activation", "map_class"):
            assert (f"{name}/{part}" in found) == (part in block)
            if part in block:
                assert np.allclose(found[f"{name}/{part}"], block[part], rtol=1e-7, atol=0), part
        for part, value in block["gates"].items():
            assert np.allclose(found[f"{name}/gates.{part}"], value, rtol=1e-7, atol=0), part
        for part in ("channel", "weight", "gate_mean", "map", "effect"):
            column = [channel[part] for channel in block["top_channels"]]
            assert np.allclose(found[f"{name}/top_channels.{part}"], column, rtol=1e-7, atol=0), part
    assert set(found) >= {"model", "image.format", "image.width", "image.height", "notes", "layer1.0/channels"}


def test_arrays_have_every_channels_map_and_leave_out_what_was_not_asked_for() -> None:
    found = arrays(AttentionAsk(frozenset({"layer1.0"}), 0, "none"))
    assert found["layer1.0/channel_maps"].shape == (4, 4, 4)
    assert {name for name in found if "effect" in name or "top_channels" in name or "layer2" in name} == set()


def test_arrays_are_fp32_where_the_engine_is_and_the_same_bytes_each_time() -> None:
    found = arrays()
    parts = ("weights", "map", "channel_maps", "gates.channel_mean", "map_activation", "top_channels.map")
    assert {found[f"layer1.0/{part}"].dtype for part in parts} == {np.dtype(np.float32)}
    assert rendered("npz") == rendered("npz")


def test_the_picture_is_drawn_of_the_jsons_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list = []
    monkeypatch.setattr(render, "draw", lambda *given: drawn.append(given) or b"")
    rendered("png", AttentionAsk(ALL, 3, effects=True))
    ((photo, answer),) = drawn
    assert schemas.to_json(answer) == rendered("json", AttentionAsk(ALL, 3, effects=True))
    assert np.array_equal(photo, decode(IMAGE, size=PHOTO, crop=CARD.crop, max_pixels=10**6).pixels)


def test_a_picture_is_in_english_whatever_the_language() -> None:
    assert rendered("png", language="zh") == rendered("png", language="en")
    assert rendered("json", language="zh") != rendered("json", language="en")


def test_a_picture_needs_no_more_maps_than_it_shows() -> None:
    assert render.ask_for("png", FULL).maps == "top"
    assert render.ask_for("npz", FULL).maps == "all"
    assert render.ask_for("json", AttentionAsk(ALL, maps="none")).maps == "none"
