"""The torch engine on the CPU, with a small network of random weights: what it answers is what the network computes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine import Answer, Ask, AttentionAsk, EngineError
from app.torch_engine import TorchEngine
from nam import maps, weights
from nam.build import ModelConfig, build
from tests.nam.test_attention import scrambled

CONFIG = ModelConfig("resnet20", 7, 32, weighting="unit-mean")


def weights_file(folder: Path, config: ModelConfig = CONFIG) -> str:
    torch.manual_seed(0)
    labels = [weights.Label(f"n{i}", f"thing {i}") for i in range(config.classes)]
    weights.save(folder / "w.safetensors", scrambled(build(config)), weights.Card("small", config, labels))
    return str(folder / "w.safetensors")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def engine(file: str) -> Iterator[TorchEngine]:
    threads = torch.get_num_threads()
    yield TorchEngine(file, device="cpu", threads=1)
    torch.set_num_threads(threads)


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))


def look(engine: TorchEngine, **options: object) -> AttentionAsk:
    return AttentionAsk(frozenset(block.name for block in engine.card.blocks), **options)


def test_labels_and_gates_are_the_networks(engine: TorchEngine, file: str) -> None:
    model, _ = weights.load(file)
    pixels = images(3)
    with torch.inference_mode():
        logits, gates = model.forward_with_gates(torch.from_numpy(np.stack(pixels)))
    expected = logits.softmax(1)
    for i, answer in enumerate(engine([Ask(p, 7, look(engine, maps="all", top_channels=3)) for p in pixels])):
        assert answer.indices.tolist() == expected[i].argsort(descending=True).tolist()
        assert np.allclose(answer.probabilities, expected[i].sort(descending=True).values, atol=1e-5)
        for j, (block, w) in enumerate(zip(answer.blocks, maps.channel_weights(model).values(), strict=True)):
            gate = gates[j][i].numpy()
            assert np.allclose(block.channel_maps, gate, atol=1e-5)
            assert np.allclose(block.map, np.tensordot(w.numpy(), gate, 1), atol=1e-5)
            assert block.top == w.argsort(descending=True, stable=True)[:3].tolist()
            assert np.allclose(block.top_maps, gate[block.top], atol=1e-5)
            seen = (block.minimum, block.maximum, block.mean, block.std)
            assert np.allclose(seen, (gate.min(), gate.max(), gate.mean(), gate.std()), atol=1e-5)


def test_every_ask_of_a_batch_gets_what_it_asked_for(engine: TorchEngine) -> None:
    one, two, three, four = images(4)
    asks = [
        Ask(one, 2),
        Ask(two, 7, AttentionAsk(frozenset({"layer1.1"}), top_channels=1, maps="none", effects=True)),
        Ask(three, 1, look(engine, top_channels=99)),
        Ask(four, 3, AttentionAsk(frozenset({"layer3.2"}), top_channels=0, maps="all")),
    ]
    plain, second, third, fourth = engine(asks)
    assert (len(plain.indices), plain.blocks) == (2, ())
    (block,) = second.blocks
    assert (block.name, block.map, block.top_maps, block.channel_maps, len(block.top)) == (
        "layer1.1",
        None,
        None,
        None,
        1,
    )
    assert block.effect is not None
    assert len(third.blocks) == 9
    assert third.blocks[0].top_maps.shape == (16, 32, 32)
    assert third.blocks[0].effect is None
    assert fourth.blocks[0].channel_maps.shape == (64, 8, 8)
    assert fourth.blocks[0].top_maps.shape == (0, 8, 8)


def test_an_ask_answers_the_same_alone_and_in_company(engine: TorchEngine) -> None:
    asks = [Ask(p, 7, look(engine, effects=i % 2 == 0) if i % 3 else None) for i, p in enumerate(images(6))]
    together = engine(asks)
    for ask, answer in zip(asks, together, strict=True):
        same(engine([ask])[0], answer)


def same(one: Answer, other: Answer) -> None:
    assert one.indices.tolist() == other.indices.tolist()
    assert np.allclose(one.probabilities, other.probabilities, atol=1e-5)
    for a, b in zip(one.blocks, other.blocks, strict=True):
        assert (a.name, a.top) == (b.name, b.top)
        assert np.allclose(a.map, b.map, atol=1e-5)
        assert (a.effect is None) == (b.effect is None)
        assert a.effect is None or abs(a.effect - b.effect) < 1e-4


def test_effects_are_those_of_the_maps_module(engine: TorchEngine, file: str) -> None:
    model, _ = weights.load(file)
    (pixels,) = images(1)
    with torch.inference_mode():
        tensor = torch.from_numpy(pixels)
        expected = maps.effects(model, tensor, model(tensor[None])[0].argmax())
    got = [block.effect for block in engine([Ask(pixels, 1, look(engine, effects=True))])[0].blocks]
    assert got == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_card_says_what_is_served_and_why(engine: TorchEngine, file: str) -> None:
    card = engine.card
    assert (card.name, card.size, len(card.labels), len(card.blocks)) == ("small", 32, 7, 9)
    assert card.labels[0].zh == "thing 0"
    assert (card.blocks[3].name, card.blocks[3].channels, card.blocks[3].height) == ("layer2.0", 32, 16)
    assert card.sha256 == weights.load(file)[1].sha256
    assert (card.facts["device"], card.facts["dtype"], card.facts["reason"]) == ("cpu", "float32", "asked for")


def test_uniform_weights_are_noted(tmp_path: Path) -> None:
    weights.save(
        tmp_path / "w.safetensors",
        build(CONFIG),
        weights.Card("fresh", CONFIG, [weights.Label(str(i), str(i)) for i in range(7)]),
    )
    (note,) = TorchEngine(str(tmp_path / "w.safetensors"), device="cpu", threads=1).card.notes
    assert "uniform channel weights in layer1.0" in note


@pytest.mark.parametrize("attention", ["none", "half", "se", "bam", "cbam"])
def test_a_network_without_nam_is_served_without_blocks_and_says_so(tmp_path: Path, attention: str) -> None:
    engine = TorchEngine(weights_file(tmp_path, ModelConfig("resnet20", 3, 32, attention)), device="cpu", threads=1)
    assert engine.card.blocks == ()
    assert engine.card.notes == ("the network has no NAM: there are no gates to show",)
    (answer,) = engine([Ask(images(1)[0], 3, AttentionAsk(frozenset(), effects=True))])
    assert answer.blocks == ()
    assert answer.probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_a_mobilenet_answers_with_all_its_blocks(tmp_path: Path) -> None:
    config = ModelConfig("mobilenetv2", 3, 32, stem="cifar", weighting="unit-mean")
    engine = TorchEngine(weights_file(tmp_path, config), device="cpu", threads=1)
    (answer,) = engine([Ask(images(1)[0], 3, look(engine, effects=True))])
    assert [block.name for block in answer.blocks] == [f"features.{i}" for i in range(1, 18)]
    assert answer.blocks[-1].map.shape == (4, 4)
    assert all(block.effect is not None for block in answer.blocks)


def test_in_bf16_probabilities_are_near_and_gates_and_effects_exact(file: str, engine: TorchEngine) -> None:
    rough = TorchEngine(file, device="cpu", dtype="bfloat16", threads=1)
    (pixels,) = images(1)
    ask = Ask(pixels, 7, look(engine, effects=True))
    (exact,), (near,) = engine([ask]), rough([ask])
    by_class = [answer.probabilities[answer.indices.argsort()] for answer in (exact, near)]
    assert by_class[1] == pytest.approx(by_class[0], abs=0.02)
    assert near.indices[0] == exact.indices[0]
    for one, other in zip(exact.blocks, near.blocks, strict=True):
        assert other.effect == pytest.approx(one.effect, abs=1e-6)
    assert near.blocks[0].std == pytest.approx(exact.blocks[0].std, rel=0.01)


def test_the_largest_batch_is_the_settings_where_one_is_set(file: str, engine: TorchEngine) -> None:
    assert TorchEngine(file, device="cpu", threads=1, max_batch=3).card.max_batch == 3
    assert engine.card.max_batch == 16


def test_what_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    with pytest.raises(EngineError, match="neither a weights file"):
        TorchEngine(str(tmp_path / "nowhere"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="build of torch finds none"):
        TorchEngine(file, device="cuda")


def test_weights_that_answer_nan_stop_the_start(tmp_path: Path) -> None:
    model = build(CONFIG)
    model.fc.bias.data.fill_(float("nan"))
    card = weights.Card("broken", CONFIG, [weights.Label(str(i), str(i)) for i in range(7)])
    weights.save(tmp_path / "w.safetensors", model, card)
    with pytest.raises(EngineError, match="not finite"):
        TorchEngine(str(tmp_path / "w.safetensors"), device="cpu", threads=1)


def test_a_warm_start_is_told_from_trained_weights(tmp_path: Path) -> None:
    for kind, warm in (("plain", True), ("torchvision", True), ("official", False), (None, False)):
        labels = [weights.Label(f"n{i}", f"thing {i}") for i in range(7)]
        recipe = {"converted": {"kind": kind}} if kind else {"epochs": 3}
        weights.save(tmp_path / "w.safetensors", build(CONFIG), weights.Card("w", CONFIG, labels, recipe=recipe))
        assert TorchEngine(str(tmp_path / "w.safetensors"), device="cpu", threads=1).card.warm_start is warm
