"""What a network tells of itself, as plain JSON: every engine, on whatever it runs, says the same."""

from dataclasses import asdict
from typing import Any

from nam import maps
from nam.build import Model, block_sizes
from nam.weights import Card


def describe(model: Model, card: Card) -> dict[str, Any]:
    """The card of loaded weights and the blocks with NAM: name, height and width of the features, channel weights (fp32
    as Python floats, sum 1). ``methods``: the further kinds of map; ``notes``: what limits the attention."""
    weights = maps.channel_weights(model)
    sizes = dict(zip((name for name, _ in model.blocks()), block_sizes(card.config), strict=True))
    return {
        "name": card.name,
        "labels": [[label.id, label.en, label.zh or label.en] for label in card.labels],
        "size": card.config.size,
        "crop": card.crop,
        "sha256": card.sha256,
        "blocks": [[name, *sizes[name], w.tolist()] for name, w in weights.items()],
        "methods": list(maps.METHODS) if weights else [],
        "notes": [*card.notes, *maps.notes(weights)],
        "warm_start": card.warm_start,
        "facts": {
            "config": asdict(card.config),
            "metrics": card.metrics,
            "recipe": card.recipe,
            "source": card.source,
        },
    }
