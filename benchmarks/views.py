"""Views from JPEG bytes, against the libraries people use, on one thread in one run.

    python benchmarks/views.py [--images 100] [--rounds 5]

Figures are CPU milliseconds per image: the best round of several, rivals taking turns within each round, so that what
else the machine does meanwhile meets all of them. Every rival does its library's own work and no more: lightly ends in
normalised floats because its transforms do; the others end in uint8 as ours does. "views only" starts from the decoded
picture. Photographs: IMPRINT_SAMPLE_DATA/imagenet_sample, else ../shared/data, else those that come with scikit-image.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import random
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageFilter, ImageOps

import imprint.backbones.torchvision_compat  # noqa: F401 - before torchvision and lightly
from imprint.data.augment import ViewEngine
from imprint.data.decode import decode
from imprint.data.view_recipes import dino_views, mae_views, simclr_views
from imprint.data.views import Crop, View
from measure import write_results

warnings.filterwarnings("ignore")
Job = Callable[[Any], object]
SETS = {"simclr 2x224": simclr_views(224), "dino 2x224+8x96": dino_views(224), "mae 1x224": mae_views(224)}
BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(limit: int) -> tuple[str, list[bytes]]:
    root = Path(os.environ.get("IMPRINT_SAMPLE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    archive = root / "imagenet_sample" / "images.zip"
    if archive.is_file():
        with zipfile.ZipFile(archive) as file:
            return "imagenet_sample", [file.read(name) for name in sorted(file.namelist())[:limit]]
    import skimage.data

    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
    pictures = [np.ascontiguousarray(getattr(skimage.data, name)()[..., :3]) for name in names]
    return "scikit-image", [simplejpeg.encode_jpeg(p, quality=92) for p in pictures]


def enlarged(images: list[bytes], pixels: float = 12e6) -> list[bytes]:
    """Enlarge by a cubic filter and encode as Pillow does by default (quality 75, 4:2:0)."""
    out = []
    for data in images:
        picture = pil(data)
        factor = (pixels / (picture.width * picture.height)) ** 0.5
        size = (round(picture.width * factor), round(picture.height * factor))
        stream = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG")
        out.append(stream.getvalue())
    return out


def pil(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def ours(name: str) -> Job:
    engine = ViewEngine(SETS[name])
    out = {key: np.empty((v, BATCH, *rest), np.uint8) for key, (v, *rest) in engine.shapes().items()}
    state: dict[str, Any] = {"epoch": 0, "b": BATCH}

    def job(image: Any) -> None:
        if state["b"] == BATCH:  # parameters are drawn for a batch at a time, as the loader does
            state.update(b=0, epoch=state["epoch"] + 1, draws=engine.draw(0, state["epoch"], np.arange(BATCH)))
        engine.render(image, state["draws"], state["b"], out)
        state["b"] += 1

    return job


def lightly(name: str) -> Job:
    from lightly.transforms import DINOTransform, MAETransform, SimCLRTransform

    made = {"s": SimCLRTransform, "d": lambda: DINOTransform(n_local_views=8), "m": MAETransform}[name[0]]()
    return lambda image: made(image)


def official_dino(name: str) -> Job:
    """The crops of DINO's public code, by torchvision on PIL, written anew from the paper's description."""
    from torchvision import transforms as T

    def blur(share: float) -> Any:
        def filtered(image: Image.Image) -> Image.Image:
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

        return T.RandomApply([T.Lambda(filtered)], p=share)

    def crop(size: int, scale: tuple[float, float], *rest: Any) -> Any:
        jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
        first = T.RandomResizedCrop(size, scale, interpolation=T.InterpolationMode.BICUBIC)
        last = [T.ToTensor(), T.Normalize(MEAN, STD)]
        return T.Compose([first, T.RandomHorizontalFlip(), jitter, T.RandomGrayscale(0.2), *rest, *last])

    solarise = T.RandomApply([T.Lambda(ImageOps.solarize)], p=0.2)
    crops = [crop(224, (0.4, 1.0), blur(1.0)), crop(224, (0.4, 1.0), blur(0.1), solarise)]
    crops += [crop(96, (0.05, 0.4), blur(0.5))] * 8
    return lambda image: [c(image) for c in crops]


def torchvision(name: str, version: int) -> Job:
    import torchvision.transforms as v1
    import torchvision.transforms.v2 as v2

    T: Any = v1 if version == 1 else v2
    cubic = T.InterpolationMode.BICUBIC
    last = [T.PILToTensor()] if version == 1 else []

    def crop(size: int, scale: tuple[float, float], mode: Any, colours: tuple[float, ...], *rest: Any) -> Any:
        steps = [T.RandomResizedCrop(size, scale, interpolation=mode, antialias=True), T.RandomHorizontalFlip()]
        if colours:
            steps += [T.RandomApply([T.ColorJitter(*colours)], p=0.8), T.RandomGrayscale(0.2)]
        return T.Compose([*steps, *rest, *last])

    def blur(size: int, share: float) -> Any:
        side = int(np.ceil(size * 0.1)) // 2 * 2 + 1
        return T.RandomApply([T.GaussianBlur(side, (0.1, 2.0))], p=share)

    if name.startswith("simclr"):
        one = crop(224, (0.08, 1), T.InterpolationMode.BILINEAR, (0.8, 0.8, 0.8, 0.2), blur(224, 0.5))
        crops = [one, one]
    elif name.startswith("mae"):
        crops = [crop(224, (0.2, 1), cubic, ())]
    else:
        look, solarise = (0.4, 0.4, 0.2, 0.1), T.RandomSolarize(128, 0.2)
        crops = [crop(224, (0.4, 1), cubic, look, blur(224, 1.0))]
        crops += [crop(224, (0.4, 1), cubic, look, blur(224, 0.1), solarise)]
        crops += [crop(96, (0.05, 0.4), cubic, look, blur(96, 0.5))] * 8
    return lambda image: [c(image) for c in crops]


def albumentations(name: str) -> Job:
    import albumentations as A

    def crop(size: int, scale: tuple[float, float], mode: int, colours: tuple[float, ...], *rest: Any) -> Any:
        steps = [A.RandomResizedCrop((size, size), scale, interpolation=mode), A.HorizontalFlip(p=0.5)]
        if colours:
            b, c, s, h = colours
            spans = [(max(0.0, 1 - x), 1 + x) for x in (b, c, s)]
            steps += [A.ColorJitter(*spans, (-h, h), p=0.8), A.ToGray(p=0.2)]
        return A.Compose([*steps, *rest])

    def blur(share: float) -> Any:
        return A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=share)

    if name.startswith("simclr"):
        one = crop(224, (0.08, 1), cv2.INTER_LINEAR, (0.8, 0.8, 0.8, 0.2), blur(0.5))
        crops = [one, one]
    elif name.startswith("mae"):
        crops = [crop(224, (0.2, 1), cv2.INTER_CUBIC, ())]
    else:
        look = (0.4, 0.4, 0.2, 0.1)
        crops = [crop(224, (0.4, 1), cv2.INTER_CUBIC, look, blur(1.0))]
        crops += [crop(224, (0.4, 1), cv2.INTER_CUBIC, look, blur(0.1), A.Solarize((0.5, 0.5), p=0.2))]
        crops += [crop(96, (0.05, 0.4), cv2.INTER_CUBIC, look, blur(0.5))] * 8
    return lambda image: [c(image=image)["image"] for c in crops]


def contenders(name: str) -> dict[str, tuple[Callable[[bytes], Any], Job]]:
    """Return how each decodes, and what it does with the picture; ours takes bytes as well as pixels."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    def tensor(data: bytes) -> torch.Tensor:
        return pil_to_tensor(pil(data))

    def opencv(data: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    found: dict[str, tuple[Callable[[bytes], Any], Job]] = {
        "imprint": (simplejpeg.decode_jpeg, ours(name)),
        "lightly": (pil, lightly(name)),
        "torchvision v1 (PIL)": (pil, torchvision(name, 1)),
        "torchvision v2 (tensor)": (tensor, torchvision(name, 2)),
        "albumentations (no antialias)": (opencv, albumentations(name)),
    }
    if name.startswith("dino"):
        found["official style (PIL)"] = (pil, official_dino(name))
    return found


def race(jobs: dict[str, tuple[Job, list[Any]]], rounds: int) -> dict[str, float]:
    """Return each job's best CPU milliseconds per image; the first image of each is a warm-up."""
    best = dict.fromkeys(jobs, float("inf"))
    for job, inputs in jobs.values():
        job(inputs[0])
    for _ in range(rounds):
        for name, (job, inputs) in jobs.items():
            gc.collect()
            start = time.process_time()
            for item in inputs:
                job(item)
            best[name] = min(best[name], (time.process_time() - start) / len(inputs) * 1e3)
    return best


def pipeline(name: str, images: list[bytes], rounds: int) -> dict[str, float]:
    jobs: dict[str, tuple[Job, list[Any]]] = {}
    for rival, (read, views) in contenders(name).items():
        direct = rival == "imprint"
        jobs[rival] = (views if direct else (lambda data, r=read, v=views: v(r(data))), images)
    return race(jobs, rounds)


def views_only(name: str, images: list[bytes], rounds: int) -> dict[str, float]:
    jobs = {rival: (views, [read(x) for x in images]) for rival, (read, views) in contenders(name).items()}
    return race(jobs, rounds)


def decoding(images: list[bytes], rounds: int) -> dict[str, float]:
    buffer = np.empty(max(int(np.prod(simplejpeg.decode_jpeg_header(x)[:2])) for x in images) * 3, np.uint8)
    jobs: dict[str, Job] = {
        "imprint (libjpeg-turbo into a kept buffer)": lambda x: simplejpeg.decode_jpeg(x, buffer=buffer),
        "the same, fast DCT and upsampling": lambda x: simplejpeg.decode_jpeg(
            x, buffer=buffer, fastdct=True, fastupsample=True
        ),
        "Pillow": pil,
        "OpenCV": lambda x: cv2.imdecode(np.frombuffer(x, np.uint8), cv2.IMREAD_COLOR_RGB),
    }
    return race({name: (job, images) for name, job in jobs.items()}, rounds)


def resizing(rounds: int) -> dict[str, float]:
    """One antialiased crop of 300 x 320 pixels to 224 x 224, from decoded pixels, bilinear."""
    picture = np.random.default_rng(0).integers(0, 256, (300, 320, 3), dtype=np.uint8)
    whole: Any = None
    engine = ViewEngine([View(name="v", crop=Crop(size=224, scale=(1.0, 1.0), ratio=whole))])
    draws, out = engine.draw(0, 0, [0]), {"v": np.empty((1, 1, 3, 224, 224), np.uint8)}
    channels_last = torch.from_numpy(picture).permute(2, 0, 1)[None]
    image = Image.fromarray(picture)

    def by_torch(_: Any) -> None:
        torch.nn.functional.interpolate(channels_last, (224, 224), mode="bilinear", antialias=True)

    jobs: dict[str, tuple[Job, list[Any]]] = {
        "imprint": (lambda _: engine.render(picture, draws, 0, out), list(range(200))),
        "torch, channels last": (by_torch, list(range(200))),
        "Pillow": (lambda _: image.resize((224, 224), Image.Resampling.BILINEAR), list(range(200))),
    }
    return race(jobs, rounds)


def show(
    title: str, figures: dict[str, float], floor: float | None = None, floor_name: str = "decoding alone"
) -> dict[str, Any]:
    reference = figures[next(iter(figures))]
    print(f"\n{title}")
    print(f"  {'':44s}{'ms/image':>10s}{'images/s':>10s}{'ours is':>10s}")
    for name, value in figures.items():
        print(f"  {name:44s}{value:10.3f}{1e3 / value:10.0f}{value / reference:9.2f}x")
    result: dict[str, Any] = {
        "ms_per_image": figures,
        "ours_is_faster_by": {k: v / reference for k, v in figures.items()},
    }
    if floor is not None:
        print(f"  {floor_name} costs {floor:.3f} ms; ours takes {reference / floor:.2f} times as long")
        result |= {"decode_floor_ms": floor, "over_floor": reference / floor}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=12, help="photographs enlarged to 12 megapixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    origin, images = photographs(args.images)
    print(f"{len(images)} photographs ({origin}), {sum(map(len, images)) / len(images) / 1e3:.0f} kB each, one thread")

    decoded = decoding(images, args.rounds)
    floor = decoded[next(iter(decoded))]
    results: dict[str, Any] = {"photographs": origin, "count": len(images), "decode": show("decode alone", decoded)}
    results["one crop"] = show("one crop 300x320 to 224x224, antialiased", resizing(args.rounds))
    for name in SETS:
        results[name] = show(name, pipeline(name, images, args.rounds), floor)
        results[f"{name}, views only"] = show(f"{name}, views only", views_only(name, images, args.rounds))
    large = enlarged(images[: args.large])
    rounds = max(1, args.rounds // 2)
    # What no reduced decoding can avoid: reading every Huffman code.
    floor = race({"eighth": (lambda x: decode(x, min_side=1), large)}, rounds)["eighth"]
    figures = pipeline("simclr 2x224", large, rounds)
    results["simclr 2x224, 12 MP"] = show("simclr 2x224, 12 megapixels", figures, floor, "decoding at an eighth alone")
    command = " ".join(["python benchmarks/views.py", *sys.argv[1:]])
    print(f"\nwritten to {write_results('views', results, command=command)}")


if __name__ == "__main__":
    main()
