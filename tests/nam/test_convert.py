"""An official checkpoint answers as its own code, a warm start as the plain network; what does not fit is refused."""

import dataclasses
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import resnet as tv
from torchvision.transforms import v2

from app import cli
from nam import weights
from nam.attention import NAM
from nam.build import Model, ModelConfig, build
from nam.convert import CIFAR10_MEAN, CIFAR10_STD, NOTE, SCALES, Conversion, Kind, convert, from_torchvision, warm_start
from nam.files import WeightsError, file_sha256
from tests.nam.test_attention import scrambled

PLAIN = Path(__file__).parent.parent / "golden" / "resnet20-plain-cifar100.safetensors"
SMALL = ModelConfig("resnet20", 10, 32, "none", "cifar")
BOTH = pytest.mark.parametrize("weighting", ["sum-one", "unit-mean"])


# The paper's code, from its description: its names, its fixed pool, its gate behind each block's last batch norm.


class ChannelAtt(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        scales = self.bn2.weight.detach().abs()
        return torch.sigmoid((scales / scales.sum())[:, None, None] * self.bn2(x)) * x


class Att(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Channel_Att = ChannelAtt(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.Channel_Att(x)


class OfficialBasic(tv.BasicBlock):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nam = Att(self.conv2.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.nam(branch) + (x if self.downsample is None else self.downsample(x)))


class OfficialBottleneck(tv.Bottleneck):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nam = Att(self.conv3.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        branch = self.nam(self.bn3(self.conv3(branch)))
        return F.relu(branch + (x if self.downsample is None else self.downsample(x)))


def official(block: type[nn.Module], layers: list[int], classes: int = 100) -> nn.Module:
    """The paper's network for 32 px, with batch norms of random scales and statistics."""
    torch.manual_seed(0)
    network = models.ResNet(block, layers, num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.avgpool = nn.AvgPool2d(4)
    return settled(network)


def settled(network: nn.Module) -> nn.Module:
    """Random batch norms, none of them so wild that a deep network overflows; in eval mode."""
    for bn in scrambled(network).modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.bias.data.mul_(0.2)
            bn.running_mean.mul_(0.2)
    return network


def checkpoint(network: nn.Module, path: Path) -> Path:
    """What the paper's script saves: the network under DataParallel, and its optimizer."""
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict()
    content = {"epoch": 200, "arch": "resnet", "state_dict": state, "best_prec1": torch.tensor(77.0)}
    torch.save(content | {"optimizer": optimizer}, path)
    return path


def pixels(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(2)).to(torch.uint8)


def normalized(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (x / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize(
    ("block", "layers", "arch"),
    [(OfficialBasic, [2, 2, 2, 2], "resnet18"), (OfficialBottleneck, [3, 4, 6, 3], "resnet50")],
)
def test_an_official_checkpoint_answers_as_its_own_code(
    block: type[nn.Module], layers: list[int], arch: str, tmp_path: Path
) -> None:
    network = official(block, layers)
    source = checkpoint(network, tmp_path / "model_best.pth.tar")
    told = convert(Conversion(source, tmp_path / "out" / "theirs.safetensors"))
    model, card = weights.load(tmp_path / "out" / "theirs.safetensors")
    assert (told["kind"], told["arch"], told["classes"]) == ("official", arch, 100)
    assert card.config == ModelConfig(arch, 100, 32, "nam", "cifar", mean=CIFAR10_MEAN, std=CIFAR10_STD)
    x = pixels(2, 32)
    with torch.inference_mode():
        expected, got = network(normalized(x, CIFAR10_MEAN, CIFAR10_STD)), model(x)
    assert 0.1 < expected.std() < 10
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_card_says_where_the_weights_come_from(tmp_path: Path) -> None:
    source = checkpoint(official(OfficialBasic, [2, 2, 2, 2], 3), tmp_path / "best.pth.tar")
    convert(Conversion(source, tmp_path / "theirs.safetensors"))
    _, card = weights.load(tmp_path / "theirs.safetensors")
    assert card.source == f"best.pth.tar, sha256 {file_sha256(source)}, official"
    assert (card.name, card.recipe, card.notes) == ("theirs", {"converted": {"kind": "official"}}, [])
    assert not card.warm_start
    assert [label.en for label in card.labels] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"])
def test_torchvisions_networks_are_recognized_and_stay_what_they_are(name: str) -> None:
    torch.manual_seed(0)
    theirs = settled(getattr(models, name)(weights=None, num_classes=7))
    ours, config = from_torchvision(theirs.state_dict(), size=64)
    assert (config.arch, config.classes, config.size) == (name.replace("_", ""), 7, 64)
    x = pixels(2, 64)
    with torch.inference_mode():
        expected = theirs(normalized(x, config.mean, config.std))
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


# The warm start.


@pytest.fixture(scope="module")
def trained() -> tuple[Model, weights.Card]:
    return weights.load(PLAIN)


def crops(size: int) -> Tensor:
    """2,000 parts of photographs at several scales, flipped or not: uint8 (2000, 3, size, size). scikit-image's wheel
    carries the photos; all four are in the public domain or CC0."""
    torch.manual_seed(0)
    parts = []
    for photo in (data.chelsea(), data.coffee(), data.astronaut(), data.rocket()):
        image = torch.from_numpy(photo.copy()).permute(2, 0, 1)
        for least in (0.01, 0.05, 0.2, 0.5):
            part = v2.Compose([v2.RandomResizedCrop(size, (least, 1.0), antialias=True), v2.RandomHorizontalFlip()])
            parts += [part(image) for _ in range(125)]
    return torch.stack(parts)


def probabilities(model: Model, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(250)]).softmax(1)


@BOTH
def test_a_warm_start_answers_as_the_trained_plain_network(weighting: Any, trained: tuple[Model, weights.Card]) -> None:
    plain, card = trained
    model = warm_start(plain, replace(card.config, attention="nam", weighting=weighting))
    images = crops(card.config.size)
    expected, got = probabilities(plain, images), probabilities(model, images)
    assert len(expected.argmax(1).unique()) > 20
    assert (expected.argmax(1) == got.argmax(1)).float().mean() >= 0.999
    assert (expected - got).abs().max() <= 1e-3


@BOTH
@pytest.mark.parametrize(("arch", "stem"), [("resnet18", "imagenet"), ("resnet50", "cifar"), ("mobilenetv2", "cifar")])
def test_a_warm_start_takes_every_network(arch: Any, stem: Any, weighting: Any) -> None:
    torch.manual_seed(0)
    config = ModelConfig(arch, 10, 32, "none", stem)
    plain = settled(build(config))
    model = warm_start(plain, replace(config, attention="nam", weighting=weighting))
    x = pixels(2, 32)
    with torch.inference_mode():
        expected, got = plain(x), model(x)
    assert (expected - got).abs().max() < 2e-3 * expected.std()


@BOTH
def test_the_weights_of_a_warm_start_are_the_plain_networks_scales(weighting: Any) -> None:
    plain = scrambled(build(SMALL))
    model = warm_start(plain, replace(SMALL, attention="nam", weighting=weighting))
    for (_, before), (_, after) in zip(plain.blocks(), model.blocks(), strict=True):
        shares = before.bn2.weight.abs() / before.bn2.weight.abs().sum()
        w = after.attention.channel.weights()
        torch.testing.assert_close(w / w.sum(), shares)


def test_the_statistics_of_a_warm_start_are_those_that_training_would_find() -> None:
    """The plain network's batch norms get the statistics of a batch; NAM's then measure theirs on the same batch."""
    x = pixels(64, 32)
    plain = scrambled(build(SMALL))
    measured(plain, [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)], x)
    model = warm_start(plain, replace(SMALL, attention="nam"))
    norms = [block.attention.channel.bn for _, block in model.blocks()]
    told = [(bn.running_mean.clone(), bn.running_var.clone()) for bn in norms]
    measured(model, norms, x)
    for bn, (mean, var) in zip(norms, told, strict=True):
        torch.testing.assert_close(bn.running_mean, mean, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(bn.running_var, var, rtol=1e-2, atol=1e-4)


def measured(model: Model, norms: list[nn.BatchNorm2d], x: Tensor) -> None:
    """Give ``norms`` the statistics of x, and let the network be as it was but for them."""
    for bn in norms:
        bn.momentum = None
        bn.reset_running_stats()
        bn.train()
    with torch.inference_mode():
        model(x)
    model.eval()


@BOTH
def test_dead_channels_and_constant_ones_stay_finite(weighting: Any) -> None:
    plain = scrambled(build(SMALL))
    plain.layer1[0].bn2.weight.data.zero_()
    plain.layer1[1].bn2.weight.data[::2] = 0
    for constant in (
        plain.layer1[1].conv2.weight.data,
        plain.layer1[1].bn2.running_mean,
        plain.layer1[1].bn2.running_var,
    ):
        constant[1::4] = 0
    model = warm_start(plain, replace(SMALL, attention="nam", weighting=weighting))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    with torch.inference_mode():
        logits, gates = model.forward_with_gates(pixels(4, 32))
        torch.testing.assert_close(logits, plain(pixels(4, 32)), rtol=1e-2, atol=1e-2)
    assert torch.equal(gates[0], torch.full_like(gates[0], 0.5))


def test_a_warm_start_leaves_the_plain_network_alone() -> None:
    plain = scrambled(build(SMALL))
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    warm_start(plain, replace(SMALL, attention="nam"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_what_cannot_be_warm_started_is_refused() -> None:
    config = replace(SMALL, attention="nam")
    with pytest.raises(ValueError, match="without attention"):
        warm_start(build(config), config)
    with pytest.raises(ValueError, match="not nam-both"):
        warm_start(build(SMALL), replace(SMALL, attention="nam-both"))
    with pytest.raises(ValueError, match="not the one that the config describes"):
        warm_start(build(SMALL), replace(config, classes=11))
    with pytest.raises(ValueError, match="above 0, not 0"):
        warm_start(build(SMALL), config, 0.0)


# Files, as the command meets them.


@pytest.fixture
def resnet18(tmp_path: Path) -> Path:
    """A state dict of torchvision's, of 1000 classes."""
    torch.manual_seed(0)
    torch.save(settled(models.resnet18(weights=None)).state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def test_a_warm_started_file_says_that_its_attention_is_not_trained(resnet18: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(resnet18), "-o", str(out), "--weighting", "unit-mean", "--name", "mine"]) == 0
    _, card = weights.load(out)
    assert card.notes == [NOTE]
    assert card.warm_start
    assert NOTE.startswith("warm start, attention not trained")
    assert card.recipe == {"converted": {"kind": "torchvision", "scale": SCALES["unit-mean"]}}
    assert (card.name, card.crop, card.metrics) == ("mine", 0.875, {})
    assert card.config == ModelConfig("resnet18", 1000, 224, weighting="unit-mean")
    assert card.labels[1] == weights.Label("1", "goldfish")


def test_what_is_said_of_the_input_is_kept(tmp_path: Path) -> None:
    source, table = tmp_path / "small.safetensors", tmp_path / "labels.tsv"
    save_file(build(SMALL).state_dict(), source)
    table.write_text("class_id\ten\tzh\n" + "".join(f"c{i}\tthing {i}\t东西{i}\n" for i in range(10)), encoding="utf-8")
    given = ["--size", "16", "--crop", "0.9", "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6", "--labels", str(table)]
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(source), "-o", str(out), "--scale", "0.5", "--live-gradient", *given]) == 0
    _, card = weights.load(out)
    expected = {"live_gradient": True, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert card.config == ModelConfig("resnet20", 10, 16, stem="cifar", **expected)
    assert (card.crop, card.labels[3]) == (0.9, weights.Label("c3", "thing 3", "东西3"))
    assert card.recipe["converted"]["scale"] == 0.5


def test_our_own_plain_weights_keep_their_card(tmp_path: Path) -> None:
    source, out = tmp_path / "plain.safetensors", tmp_path / "out.safetensors"
    config = replace(SMALL, size=24, mean=(0.1, 0.2, 0.3))
    labels = [weights.Label(f"n{i}", f"thing {i}", f"东西{i}") for i in range(10)]
    card = weights.Card("plain", config, labels, 0.9, {"val": {"top1": 1.0}}, {"epochs": 3}, notes=["small"])
    weights.save(source, scrambled(build(config)), card)
    assert convert(Conversion(source, out))["kind"] == "plain"
    _, started = weights.load(out)
    assert started.config == replace(config, attention="nam")
    assert (started.labels, started.crop, started.notes, started.metrics) == (labels, 0.9, [NOTE, "small"], {})
    assert started.recipe == {"epochs": 3, "converted": {"kind": "plain", "scale": SCALES["sum-one"]}}
    with pytest.raises(ValueError, match="says size, labels itself"):
        convert(Conversion(source, out, size=32, labels=tmp_path))
    with pytest.raises(ValueError, match="without attention"):
        convert(Conversion(out, tmp_path / "twice.safetensors"))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
)
def test_kernels_keep_their_sources_dtype(dtype: torch.dtype, stored: torch.dtype, tmp_path: Path) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in scrambled(build(SMALL)).state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    convert(Conversion(tmp_path / "a.pth", tmp_path / "a.safetensors"))
    written = load_file(tmp_path / "a.safetensors")
    assert {t.dtype for t in written.values() if t.ndim > 1} == {stored}
    assert torch.equal(written["conv1.weight"], state["conv1.weight"].to(stored))
    assert written["bn1.weight"].dtype == torch.float32
    model, _ = weights.load(tmp_path / "a.safetensors")
    assert model.fc.weight.dtype == torch.float32


def test_old_checkpoints_that_count_no_batches_are_read() -> None:
    state = {n: t for n, t in build(SMALL).state_dict().items() if not n.endswith("num_batches_tracked")}
    assert from_torchvision(state)[1].arch == "resnet20"


def altered(name: str, change: Callable[[Tensor], Tensor] | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A state dict with one tensor changed, or gone."""

    def alter(state: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = {n: t for n, t in state.items() if n != name}
        return rest if change is None else {**rest, name: change(state.get(name, torch.zeros(3)))}

    return alter


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (altered("layer2.1.bn2.bias", None), r"missing: layer2\.1\.bn2\.bias"),
        (altered("layer9.extra", torch.clone), r"unknown: layer9\.extra"),
        (altered("layer1.0.conv1.weight", lambda t: t[:1]), r"misshapen: layer1\.0\.conv1\.weight \(1, 16, 3, 3\)"),
        (altered("bn1.running_var", lambda t: t / 0), r"not finite: bn1\.running_var"),
        (altered("fc.weight", None), r"no last layer fc\.weight"),
        (lambda state: {}, "no state dict"),
        (lambda state: {"fc.weight": 1}, "no state dict"),
        (lambda state: list(state.values()), "no state dict"),
    ],
)
def test_what_does_not_fit_is_named(alter: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    torch.save(alter(scrambled(build(SMALL)).state_dict()), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        convert(Conversion(tmp_path / "a.pth", tmp_path / "a.safetensors"))
    assert not (tmp_path / "a.safetensors").exists()


def test_every_field_of_a_conversion_has_its_flag_and_every_kind_is_offered() -> None:
    fields = {field.name for field in dataclasses.fields(Conversion)} - {"source"}
    flags = [f"--{name.replace('_', '-')}" for name in sorted(fields)]
    values = {"--live-gradient": [], "--kind": ["plain"], "--weighting": ["sum-one"], "--mean": ["1,2,3"]}
    given = [word for flag in flags for word in (flag, *values.get(flag, ["1"]))]
    assert fields <= set(vars(cli._parser().parse_args(["convert", "a.pth", *given])))
    for kind in ("auto", *get_args(Kind)):
        assert cli._parser().parse_args(["convert", "a", "-o", "b", "--kind", kind]).kind == kind


def test_a_missing_gate_of_an_official_checkpoint_is_named_as_it_is_called_there(tmp_path: Path) -> None:
    network = official(OfficialBasic, [2, 2, 2, 2])
    del network.layer3[1].nam.Channel_Att.bn2.weight
    source = checkpoint(network, tmp_path / "best.pth.tar")
    with pytest.raises(WeightsError, match=r"missing: layer3\.1\.nam\.Channel_Att\.bn2\.weight$"):
        convert(Conversion(source, tmp_path / "a.safetensors"))


class Hostile:
    """Unpickled with powers, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def as_torch_saves(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("write", [as_torch_saves, pickle.dumps], ids=["zip", "bare"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.pth.tar", "evil.safetensors"])
def test_a_hostile_pickle_is_refused_in_one_line_and_runs_nothing(
    write: Callable[[Any], bytes], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / name).write_bytes(write({"state_dict": {"fc.weight": torch.zeros(2, 2), "evil": Hostile(ran)}}))
    assert cli.main(["convert", str(tmp_path / name), "-o", str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_damaged_files_and_missing_ones_are_refused_in_one_line(
    resnet18: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resnet18.write_bytes(resnet18.read_bytes()[:-1000])
    for source in (resnet18, tmp_path / "nowhere.pth", tmp_path / "nowhere.safetensors"):
        assert cli.main(["convert", str(source), "-o", str(tmp_path / "out.safetensors")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("nam: ")
        assert error.count("\n") == 1
        assert source.name in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 1 or more"),
        ({"crop": 1.5}, "at most 1"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"kind": "official"}, r"missing: layer1\.0\.nam\.Channel_Att\.bn2\.weight"),
        ({"kind": "plain"}, "carries no card"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_file(build(SMALL).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        convert(Conversion(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **options))


def test_an_official_checkpoint_has_no_warm_start(tmp_path: Path) -> None:
    source = checkpoint(official(OfficialBasic, [2, 2, 2, 2]), tmp_path / "best.pth.tar")
    for options in ({"scale": 0.1}, {"weighting": "unit-mean"}):
        with pytest.raises(ValueError, match="has NAM already"):
            convert(Conversion(source, tmp_path / "a.safetensors", **options))


def test_every_block_of_a_converted_network_has_channel_nam(resnet18: Path, tmp_path: Path) -> None:
    convert(Conversion(resnet18, tmp_path / "a.safetensors"))
    model, _ = weights.load(tmp_path / "a.safetensors")
    assert all(isinstance(block.attention, NAM) and block.attention.spatial is None for _, block in model.blocks())
