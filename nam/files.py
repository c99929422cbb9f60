"""Where weights files are, and what tells one from another. Free of torch: an engine without it starts here."""

import hashlib
from pathlib import Path

_HERE = Path(__file__).parent
# A wheel has them in this package; a checkout beside it, also where it is installed with -e.
SHIPPED = _HERE / "shipped" if (_HERE / "shipped").is_dir() else _HERE.parent / "weights"
DEFAULT = "resnet18-nam-tiny-imagenet"
# What ships, by name: the sha256 of each file. Another file under such a name is refused, wherever it lies.
SHIPPED_SHA256 = {"resnet18-nam-tiny-imagenet": "41cbb69cb7271a289f52dadfa91db4f262b0edae7ad8fbffce268b8b066792fd"}


class WeightsError(ValueError):
    """A weights file that is missing, damaged, or not of this project's form."""


def locate(path: str | Path) -> Path:
    """The file behind a path or behind the name of shipped weights; WeightsError where there is neither."""
    if Path(path).is_file():
        return Path(path)
    shipped = SHIPPED / f"{path}.safetensors"
    if str(path) in SHIPPED_SHA256 and shipped.is_file():
        return shipped
    raise WeightsError(f"{path} is neither a weights file nor the name of shipped weights")


def verified(path: str | Path, sha256: str = "") -> tuple[Path, str]:
    """The file behind a path or a name, and its sha256; WeightsError where that is not ``sha256``, where one is given,
    or not the one of the weights that ship under this name."""
    file = locate(path)
    found = file_sha256(file)
    for wanted in (sha256.lower(), SHIPPED_SHA256.get(str(path))):
        if wanted and wanted != found:
            raise WeightsError(f"{file} has the sha256 {found}, and {wanted} is asked for: it is another file")
    return file, found


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
