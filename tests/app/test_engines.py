"""Every engine on the CPU, with a small network of random weights: what it answers is what the network computes.

Below, what only OpenVINO's has. Its graphs are made in this process; test_graphs.py has them made by the other one.
"""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from skimage import data

from app import openvino_engine
from app.engine import Answer, Ask, AttentionAsk, Engine, EngineError
from app.graphs import FORM, seal
from app.openvino_engine import OpenVINOEngine
from app.schemas import BlockAnswer
from app.torch_engine import TorchEngine
from nam import maps, weights
from nam.build import ModelConfig, build
from nam.evaluate import cost
from nam.export import export
from nam.files import DEFAULT, file_sha256, locate
from tests.nam.test_attention import scrambled

CONFIG = ModelConfig("resnet20", 7, 32, weighting="unit-mean")
WITHOUT = "the network has no NAM: there are no gates to show"
ROOT = Path(__file__).parents[2]

METHODS = ({"class", "activation", "product"}, {"class"}, {"product"})

Start = Callable[..., Engine]


def weights_file(folder: Path, config: ModelConfig = CONFIG) -> str:
    torch.manual_seed(0)
    labels = [weights.Label(f"n{i}", f"thing {i}") for i in range(config.classes)]
    weights.save(folder / "w.safetensors", scrambled(build(config)), weights.Card("small", config, labels))
    return str(folder / "w.safetensors")


def exported(cache: Path, file: str) -> Path:
    graph = cache / f"{file_sha256(locate(file))}-{FORM}.xml"
    if not graph.is_file():
        export(file, graph)
        seal(graph)
    return graph


def openvino(cache: Path, file: str, *, threads: int = 1, **options: object) -> OpenVINOEngine:
    return OpenVINOEngine(file, cache=exported(cache, file).parent, threads=threads, **options)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["torch", "openvino"])
def start(request: pytest.FixtureRequest, cache: Path) -> Iterator[Start]:
    threads = torch.get_num_threads()
    yield partial(TorchEngine, threads=1) if request.param == "torch" else partial(openvino, cache)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(start: Start, file: str) -> Engine:
    return start(file)


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))


def look(engine: Engine, **options: object) -> AttentionAsk:
    return AttentionAsk(frozenset(block.name for block in engine.card.blocks), **options)


def mixed(engine: Engine, count: int) -> list[Ask]:
    """Two in three want the attention, and half of those the effects."""
    return [
        Ask(p, 7, look(engine, maps="all", effects=i % 2 == 0) if i % 3 else None) for i, p in enumerate(images(count))
    ]


def same(one: Answer, other: Answer) -> None:
    assert one.indices.tolist() == other.indices.tolist()
    assert np.allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-5)
    for a, b in zip(one.blocks, other.blocks, strict=True):
        assert (a.name, a.top, a.effect is None) == (b.name, b.top, b.effect is None)
        for mine, theirs in ((a.map, b.map), (a.channel_mean, b.channel_mean), (a.channel_maps, b.channel_maps)):
            assert np.allclose(mine, theirs, rtol=0, atol=1e-5)
        assert a.effect is None or abs(a.effect - b.effect) < 1e-5


# What an engine answers.


@pytest.mark.parametrize("attention", ["nam", "nam-spatial", "nam-both"])
def test_labels_and_gates_are_the_networks(start: Start, tmp_path: Path, attention: str) -> None:
    file = weights_file(tmp_path, ModelConfig("resnet20", 7, 32, attention, weighting="unit-mean"))
    (model, _), engine, pixels = weights.load(file), start(file), images(3)
    with torch.inference_mode():
        logits, gates = model.forward_with_gates(torch.from_numpy(np.stack(pixels)))
    expected = logits.softmax(1)
    for i, answer in enumerate(engine([Ask(p, 7, look(engine, maps="all", top_channels=3)) for p in pixels])):
        assert answer.indices.tolist() == expected[i].argsort(descending=True).tolist()
        assert np.allclose(answer.probabilities, expected[i].sort(descending=True).values, rtol=0, atol=1e-5)
        for j, (block, w) in enumerate(zip(answer.blocks, maps.channel_weights(model).values(), strict=True)):
            gate = gates[j][i].numpy()
            assert np.allclose(block.channel_maps, gate, rtol=0, atol=1e-5)
            assert np.allclose(block.channel_mean, gate.mean((1, 2)), rtol=0, atol=1e-5)
            assert np.allclose(block.map, np.tensordot(w.numpy(), gate, 1), rtol=0, atol=1e-5)
            assert block.top == w.argsort(descending=True, stable=True)[:3].tolist()
            assert np.allclose(block.top_maps, gate[block.top], rtol=0, atol=1e-5)
            seen = (block.minimum, block.maximum, block.mean, block.std)
            assert np.allclose(seen, (gate.min(), gate.max(), gate.mean(), gate.std()), rtol=0, atol=1e-5)


def test_every_ask_of_a_batch_gets_what_it_asked_for(engine: Engine) -> None:
    one, two, three, four = images(4)
    asks = [
        Ask(one, 2),
        Ask(two, 99, AttentionAsk(frozenset({"layer1.1"}), top_channels=1, maps="none", effects=True)),
        Ask(three, 1, look(engine, top_channels=99)),
        Ask(four, 3, AttentionAsk(frozenset({"layer3.2"}), top_channels=0, maps="all")),
    ]
    plain, second, third, fourth = engine(asks)
    assert [len(answer.indices) for answer in (plain, second, third, fourth)] == [2, 7, 1, 3]
    assert plain.blocks == ()
    (block,) = second.blocks
    assert (block.name, len(block.top)) == ("layer1.1", 1)
    assert (block.map, block.top_maps, block.channel_maps) == (None, None, None)
    assert block.effect is not None
    assert len(third.blocks) == 9
    assert third.blocks[0].top_maps.shape == (16, 32, 32)
    assert third.blocks[0].effect is None
    assert fourth.blocks[0].channel_maps.shape == (64, 8, 8)
    assert fourth.blocks[0].top_maps.shape == (0, 8, 8)


@pytest.mark.parametrize("count", [2, 5, 13, 16, 21])
def test_an_ask_answers_the_same_alone_and_in_company(engine: Engine, count: int) -> None:
    asks = mixed(engine, count)
    for ask, answer in zip(asks, engine(asks), strict=True):
        same(engine([ask])[0], answer)


def test_the_images_of_these_tests_are_told_apart(engine: Engine) -> None:
    """Else order would not matter."""
    probabilities = np.array([a.probabilities[a.indices.argsort()] for a in engine([Ask(p, 7) for p in images(21)])])
    apart = np.abs(probabilities[:, None] - probabilities).max(2)
    assert apart[~np.eye(21, dtype=bool)].min() > 1e-4


@pytest.mark.parametrize("attention", [False, True])
def test_a_batch_beyond_the_largest_that_pays_is_answered(engine: Engine, attention: bool) -> None:
    asks = [Ask(p, 7, look(engine, maps="all") if attention else None) for p in images(engine.card.max_batch + 5)]
    answers = engine(asks)
    assert len(answers) == len(asks)
    same(engine(asks[-1:])[0], answers[-1])


def test_an_answer_stays_as_it_is_while_others_are_computed(engine: Engine) -> None:
    first, second = [Ask(p, 7, look(engine, maps="all")) for p in images(2)]
    (kept,) = engine([first])
    before = copy.deepcopy(kept)
    engine([second])
    engine([second, second])
    same(before, kept)


def test_calls_side_by_side_get_each_their_own_answers(start: Start, file: str) -> None:
    engine = start(file, lanes=3)
    asks = mixed(engine, 24)
    alone = [engine([ask])[0] for ask in asks]

    def call(seed: int) -> tuple[list[int], list[Answer]]:
        order = np.random.default_rng(seed).permutation(24)[: 1 + seed % 7].tolist()
        return order, engine([asks[i] for i in order])

    with ThreadPoolExecutor(3) as pool:
        for order, answers in pool.map(call, range(60)):
            for i, answer in zip(order, answers, strict=True):
                same(alone[i], answer)


def test_effects_are_those_of_the_maps_module(engine: Engine, file: str) -> None:
    model, _ = weights.load(file)
    (pixels,) = images(1)
    with torch.inference_mode():
        tensor = torch.from_numpy(pixels)
        expected = maps.effects(model, tensor, model(tensor[None])[0].argmax())
    got = [block.effect for block in engine([Ask(pixels, 1, look(engine, effects=True))])[0].blocks]
    assert got == pytest.approx(expected.tolist(), abs=1e-5)
    assert expected.abs().max() > 1e-3


def test_effects_of_channels_are_those_of_the_maps_module(engine: Engine, file: str) -> None:
    """32 of them, of two blocks: more than one batch."""
    model, _ = weights.load(file)
    (pixels,) = images(1)
    ask = AttentionAsk(frozenset({"layer1.2", "layer3.0"}), 16, "none", effects=True, channel_effects=True)
    blocks = engine([Ask(pixels, 1, ask)])[0].blocks
    hold, channels = torch.tensor([2] * 17 + [6] * 17), torch.tensor([-1, *blocks[0].top, -1, *blocks[1].top])
    with torch.inference_mode():
        tensor = torch.from_numpy(pixels)
        expected = maps.effects(model, tensor, model(tensor[None])[0].argmax(), hold, channels)
    got = [effect for block in blocks for effect in (block.effect, *block.top_effects)]
    assert got == pytest.approx(expected.tolist(), abs=1e-5)
    assert expected.abs().max() > 1e-3


def test_effects_of_channels_cost_no_forward_for_what_was_not_asked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, sizes = engine.held, []
    monkeypatch.setattr(engine, "held", lambda *a: sizes.append(len(a[1])) or held(*a))
    two = frozenset({"layer1.2", "layer3.0"})
    for ask in (AttentionAsk(two, 3, "none", effects=True), AttentionAsk(two, 3, "none", channel_effects=True)):
        engine([Ask(images(1)[0], 1, ask)])
    engine([Ask(images(1)[0], 1, look(engine, top_channels=2, channel_effects=True, effects=True))])
    assert sizes == [3, 7, 16, 12]


def test_the_further_maps_are_those_of_the_maps_module(engine: Engine, file: str) -> None:
    model, _ = weights.load(file)
    pixels = images(3)
    with torch.inference_mode():
        seen = model.look(torch.from_numpy(np.stack(pixels)))
        maps_of = {method: drawn(model, seen) for method, drawn in maps.METHODS.items()}
    assert engine.card.methods == tuple(maps.METHODS)
    assert {f"map_{method}" for method in maps.METHODS} == {n for n in BlockAnswer.model_fields if n[:4] == "map_"}
    asks = [Ask(p, 1, look(engine, methods=frozenset(wanted))) for p, wanted in zip(pixels, METHODS, strict=True)]
    for i, (answer, wanted) in enumerate(zip(engine(asks), METHODS, strict=True)):
        for j, block in enumerate(answer.blocks):
            assert set(block.methods) == {method for method in wanted if j in maps_of[method]}
            for method, map_ in block.methods.items():
                assert np.allclose(map_, maps_of[method][j][i], rtol=1e-4, atol=1e-5)


def test_effects_are_those_of_the_label_that_is_shown(start: Start, file: str, tmp_path: Path) -> None:
    """For this image all labels are as good as equal: the best one in bf16 is hardly ever fp32's."""
    (model, card), (pixels,) = weights.load(file), images(1)
    tensor = torch.from_numpy(pixels)
    with torch.inference_mode():
        model.fc.bias.data -= model(tensor[None])[0]
    weights.save(tmp_path / "w.safetensors", model, card)
    engine = start(str(tmp_path / "w.safetensors"), dtype="bfloat16")
    (answer,) = engine([Ask(pixels, 1, look(engine, effects=True))])
    with torch.inference_mode():
        expected = maps.effects(model, tensor, torch.tensor(answer.indices[0]))
    assert [block.effect for block in answer.blocks] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("attention", ["none", "se"])
def test_a_network_without_nam_is_served_without_blocks_and_says_so(
    start: Start, tmp_path: Path, attention: str
) -> None:
    engine = start(weights_file(tmp_path, ModelConfig("resnet20", 3, 32, attention)))
    assert engine.card.blocks == ()
    assert engine.card.notes == (WITHOUT,)
    for answer in engine([Ask(p, 3, AttentionAsk(frozenset(), effects=True)) for p in images(2)]):
        assert answer.blocks == ()
        assert answer.probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_a_mobilenet_answers_with_all_its_blocks(start: Start, tmp_path: Path) -> None:
    engine = start(weights_file(tmp_path, ModelConfig("mobilenetv2", 3, 32, stem="cifar", weighting="unit-mean")))
    (answer,) = engine([Ask(images(1)[0], 3, look(engine, effects=True))])
    assert [block.name for block in answer.blocks] == [f"features.{i}" for i in range(1, 18)]
    assert answer.blocks[-1].map.shape == (4, 4)
    assert all(block.effect is not None for block in answer.blocks)


def test_in_bf16_probabilities_are_near_and_gates_and_effects_exact(start: Start, file: str, engine: Engine) -> None:
    rough = start(file, dtype="bfloat16")
    ask = Ask(images(1)[0], 7, look(engine, effects=True))
    (exact,), (near,) = engine([ask]), rough([ask])
    by_class = [answer.probabilities[answer.indices.argsort()] for answer in (exact, near)]
    assert by_class[1] == pytest.approx(by_class[0], abs=0.02)
    assert near.indices[0] == exact.indices[0]
    assert [b.effect for b in near.blocks] == pytest.approx([b.effect for b in exact.blocks], abs=1e-5)
    assert near.blocks[0].std == pytest.approx(exact.blocks[0].std, rel=0.01)


# What an engine says of itself, and what it cannot start with.


def test_the_card_says_what_is_served_and_why(engine: Engine, file: str) -> None:
    card = engine.card
    assert (card.name, card.size, len(card.labels), len(card.blocks)) == ("small", 32, 7, 9)
    assert card.labels[0].zh == "thing 0"
    assert (card.blocks[3].name, card.blocks[3].channels, card.blocks[3].height) == ("layer2.0", 32, 16)
    shares = maps.channel_weights(weights.load(file)[0])["layer2.0"]
    assert np.array_equal(card.blocks[3].weights, shares.numpy())
    assert card.sha256 == file_sha256(Path(file))
    assert (card.facts["device"], card.facts["dtype"], card.facts["reason"]) == ("cpu", "float32", "asked for")
    assert card.facts["engine"].split()[0] in ("torch", "openvino")
    assert card.facts["config"]["arch"] == "resnet20"


def test_the_largest_batch_and_the_lanes_are_the_settings_where_they_are_set(start: Start, file: str) -> None:
    engine = start(file, max_batch=3, lanes=2)
    assert (engine.card.max_batch, engine.card.lanes) == (3, 2)
    assert len(engine([Ask(p) for p in images(3)])) == 3


def bare(kind: str, cache: Path) -> Start:
    """As it is served: what is not in the cache is made by the other process."""
    return TorchEngine if kind == "torch" else partial(OpenVINOEngine, cache=cache)


def test_a_start_warms_up_few_images_where_a_batch_may_be_large() -> None:
    warmed = openvino_engine._sizes(1024)
    assert warmed[0] == 1024
    assert set(warmed) > set(range(1, 17))  # the default: none of its batches is the first of its size
    assert sum(warmed) < 4 * 1024


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_missing_weights_stop_the_start(kind: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere is neither a weights file nor the name"):
        bare(kind, tmp_path)(str(tmp_path / "nowhere"))


def without_a_tensor(file: str, target: Path) -> Path:
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    save_file({name: t for name, t in load_file(file).items() if name != "fc.bias"}, target, header)
    return target


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_damaged_weights_stop_the_start_with_their_own_words_in_one_line(kind: str, file: str, tmp_path: Path) -> None:
    damaged = str(without_a_tensor(file, tmp_path / "damaged.safetensors"))
    with pytest.raises(EngineError, match=r"damaged\.safetensors does not hold the network of its card.*fc\.bias") as e:
        bare(kind, tmp_path)(damaged)
    assert len(str(e.value).splitlines()) == 1


def test_weights_that_answer_nan_stop_the_start(start: Start, tmp_path: Path) -> None:
    model = build(CONFIG)
    model.fc.bias.data.fill_(float("nan"))
    card = weights.Card("broken", CONFIG, [weights.Label(str(i), str(i)) for i in range(7)])
    weights.save(tmp_path / "w.safetensors", model, card)
    with pytest.raises(EngineError, match="not finite"):
        start(str(tmp_path / "w.safetensors"))


# OpenVINO's own.


@pytest.fixture(scope="module")
def three_lanes(cache: Path, file: str) -> OpenVINOEngine:
    return openvino(cache, file, lanes=3, threads=0)


def test_a_lone_call_on_all_cores_answers_as_one_beside_another(three_lanes: OpenVINOEngine) -> None:
    for ask in mixed(three_lanes, 3):
        wide = three_lanes([ask])[0]
        with three_lanes._lane() as (_, alone):
            assert alone
            narrow = three_lanes([ask])[0]
        same(wide, narrow)


def test_a_call_that_fails_gives_its_lane_back(three_lanes: OpenVINOEngine) -> None:
    for _ in range(4):
        with pytest.raises(ValueError, match="broadcast"):
            three_lanes([Ask(np.zeros((3, 31, 32), np.uint8))])
    with three_lanes._lane() as (_, alone):
        assert alone
        assert len(three_lanes._idle) == 2


def test_the_largest_batch_follows_the_operations_of_an_image(
    cache: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cost(weights.load(file)[0], 32)["flops"]
    for images_worth, most in ((0.5, 1), (5.5, 5), (99, 16)):
        monkeypatch.setattr(openvino_engine, "_MOST_FLOPS", images_worth * one)
        assert openvino(cache, file, lanes=1).card.max_batch == most


def test_what_few_ask_for_is_compiled_when_it_is_first_asked_for(cache: Path, file: str) -> None:
    engine = openvino(cache, file, lanes=1)
    engine([Ask(images(1)[0], 5, look(engine))])
    kinds = {shape.kind for shape in engine._compiled}
    assert kinds == {"labels", "gates"}
    engine([Ask(images(1)[0], 5, look(engine, effects=True, methods=frozenset({"class"})))])
    compiled = dict(engine._compiled)
    engine([Ask(images(1)[0], 5, look(engine, channel_effects=True, methods=frozenset({"activation"})))])
    assert {shape.kind for shape in compiled} == {"labels", "gates", "held", "methods"}
    assert engine._compiled == compiled


def test_serving_with_it_imports_no_torch(cache: Path, file: str) -> None:
    exported(cache, file)
    code = f"""if True:
        import pathlib, sys
        import numpy as np
        from app.engine import Ask, AttentionAsk
        from app.openvino_engine import OpenVINOEngine
        engine = OpenVINOEngine({file!r}, cache=pathlib.Path({str(cache)!r}), threads=1, lanes=1)
        look = AttentionAsk(frozenset(block.name for block in engine.card.blocks), effects=True)
        (answer,) = engine([Ask(np.zeros((3, 32, 32), np.uint8), 3, look)])
        print(len(answer.blocks), "torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("9 False\n", "")


def photos(size: int) -> list[np.ndarray]:
    pictures = [Image.fromarray(photo()).resize((size, size)) for photo in (data.coffee, data.astronaut, data.chelsea)]
    return [np.asarray(picture).transpose(2, 0, 1).copy() for picture in pictures]


def test_in_bf16_the_shipped_weights_keep_their_labels_and_every_gates_spread(cache: Path) -> None:
    model, _ = weights.load(DEFAULT)
    engine, pixels = openvino(cache, DEFAULT, dtype="bfloat16", lanes=1), photos(64)
    with torch.inference_mode():
        logits, gates = model.forward_with_gates(torch.from_numpy(np.stack(pixels)))
    for i, answer in enumerate(engine([Ask(p, 1, look(engine)) for p in pixels])):
        assert answer.indices[0] == logits[i].argmax()
        for block, gate in zip(answer.blocks, gates, strict=True):
            assert block.std == pytest.approx(gate[i].std(correction=0).item(), rel=0.01), block.name


@pytest.mark.parametrize("cache_in", ["file", "file/below", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_stops_the_start(file: str, tmp_path: Path, cache_in: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=cache_in) as caught:
        OpenVINOEngine(file, cache=tmp_path / cache_in)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("lost", ["the constants", "half the graph"])
def test_a_damaged_graph_in_the_cache_stops_the_start_and_is_named(
    cache: Path, file: str, tmp_path: Path, lost: str
) -> None:
    graph = exported(cache, file)
    whole = graph.read_bytes()
    (tmp_path / graph.name).write_bytes(whole if lost == "the constants" else whole[: len(whole) // 2])
    with pytest.raises(EngineError, match=f"{graph.name} is not as it was made"):
        OpenVINOEngine(file, cache=tmp_path)
    for suffix in (".bin", ".sha256"):  # one more byte, where OpenVINO itself would see nothing
        (tmp_path / graph.name).with_suffix(suffix).write_bytes(graph.with_suffix(suffix).read_bytes())
    (tmp_path / graph.name).write_bytes(whole + b"\n")
    with pytest.raises(EngineError, match="is not as it was made"):
        OpenVINOEngine(file, cache=tmp_path)


def test_a_graph_that_is_changed_while_the_service_runs_is_not_read_again(
    cache: Path, file: str, tmp_path: Path
) -> None:
    for suffix in (".xml", ".bin", ".sha256"):
        kept = exported(cache, file).with_suffix(suffix)
        (tmp_path / kept.name).write_bytes(kept.read_bytes())
    engine = OpenVINOEngine(file, cache=tmp_path, lanes=1, threads=1)
    constants = (tmp_path / exported(cache, file).name).with_suffix(".bin")
    constants.write_bytes(constants.read_bytes() + b"0")
    with pytest.raises(EngineError, match="is not as it was made"):
        engine.held(images(1)[0], np.array([-1]), np.array([-1]))
