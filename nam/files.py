"""Where weights files are, and what tells one from another. Free of torch: an engine without it starts here."""

import hashlib
from pathlib import Path

_HERE = Path(__file__).parent
# A wheel has them in this package; a checkout beside it, also where it is installed with -e.
SHIPPED = _HERE / "shipped" if (_HERE / "shipped").is_dir() else _HERE.parent / "weights"
DEFAULT = "resnet18-nam-tiny-imagenet"


class WeightsError(ValueError):
    """A weights file that is missing, damaged, or not of this project's form."""


def locate(path: str | Path) -> Path:
    """The file behind a path or behind the name of shipped weights; WeightsError where there is neither."""
    if Path(path).is_file():
        return Path(path)
    shipped = SHIPPED / f"{path}.safetensors"
    if shipped.is_file():
        return shipped
    raise WeightsError(f"{path} is neither a weights file nor the name of shipped weights")


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
