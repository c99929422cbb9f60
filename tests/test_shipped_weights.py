"""The shipped weights are what their documents say: size, dtype, card, and the figures in weights/README.md."""

from pathlib import Path

import pytest

from nam import files, weights
from nam.alive import verdict

FILES = sorted(files.SHIPPED.glob("*.safetensors"))


def test_the_default_ships() -> None:
    assert files.DEFAULT in [file.stem for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_file_is_what_its_documents_say(file: Path) -> None:
    model, card = weights.load(file.stem)
    assert file.stat().st_size < 50_000_000
    assert card.name == file.stem
    assert model.fc.out_features == len(card.labels) == card.config.classes
    assert all(label.zh for label in card.labels)
    told = (files.SHIPPED / "README.md").read_text(encoding="utf-8")
    for fact in (card.name, card.sha256, f"{card.metrics['val']['top1']:.2f}", f"{card.metrics['val']['top5']:.2f}"):
        assert fact in told, fact
    assert card.name in (files.SHIPPED / "LOG.md").read_text(encoding="utf-8")
    for block in card.metrics["attention"]:
        described = (
            f"| {block['block']} | {block['max_weight']:.3f} | {block['weight_entropy']:.5f} | {block['gate_std']:.3f} "
        )
        held = f"{block['top1_lost_held']:.2f} ± {block['held_error']:.2f}"
        assert f"{described}| {held} | {block['top1_lost_permuted']:.2f} ± {block['permuted_error']:.2f} |" in told
    assert card.notes == verdict(card.metrics["attention"])
    for readme in ("README.md", "README.zh-CN.md"):
        assert f"{card.metrics['val']['top1']:.2f}" in (files.SHIPPED.parent / readme).read_text(encoding="utf-8")
