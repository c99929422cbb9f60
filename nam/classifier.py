"""A network to ask in Python: from a picture to its labels, and to what the gates say of it. ``nam.load`` makes one."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from nam import weights
from nam.outputs import Outputs
from nam.transforms import load_square
from nam.weights import Card, Label

# A file, a PIL image, or what is cropped already: uint8 (3, S, S), RGB.
Picture = str | Path | Image.Image | Tensor


@dataclass(frozen=True)
class Classifier:
    """``network``: folded, fp32, in eval mode; its ``look`` takes batches, uint8 (B, 3, S, S), and its ``to`` another
    device. To train: :func:`nam.weights.load`. ``card``: what the weights file says of itself."""

    network: Outputs
    card: Card

    @torch.inference_mode()
    def predict(self, picture: Picture, top_k: int = 5) -> list[tuple[Label, float]]:
        """The best labels, best first, each with its softmax over all classes."""
        (probabilities,) = self.network.plain(self.pixels(picture))["probabilities"]
        best = probabilities.topk(min(top_k, len(probabilities)))
        labels = [self.card.labels[index] for index in best.indices.tolist()]
        return list(zip(labels, best.values.tolist(), strict=True))

    @torch.inference_mode()
    def attention(self, picture: Picture) -> dict[str, Tensor]:
        """All that is said of one picture, fp32, by the names that :class:`nam.outputs.Outputs` gives, without the
        batch's dimension: ``gates.layer1.0`` is (C, H, W), ``map_product.layer1.0`` (H, W)."""
        said = self.network.look(self.pixels(picture), methods=True)
        return {name: of_all[0] for name, of_all in said.items()}

    def pixels(self, picture: Picture) -> Tensor:
        """uint8 (1, 3, S, S) where the network is: the centred square, its EXIF orientation applied."""
        if isinstance(picture, str | Path):
            with Image.open(picture) as opened:
                return self.pixels(opened)
        if isinstance(picture, Image.Image):
            upright = ImageOps.exif_transpose(picture)
            picture = torch.from_numpy(load_square(upright, self.card.config.size, self.card.crop))
        return picture[None].to(next(self.network.parameters()).device)


def load(path: str | Path) -> Classifier:
    """Of a file, or of shipped weights by their name, on the CPU. Raises WeightsError."""
    model, card = weights.load(path)
    return Classifier(Outputs(model).eval(), card)
