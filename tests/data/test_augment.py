"""The engine from end to end: torchvision's pixels, any thread, depth and number of channels, only its own rows."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import simplejpeg
import skimage.data
import torch

import imprint.backbones.torchvision_compat  # noqa: F401 - before torchvision
from imprint.core.errors import BadImage, ConfigError
from imprint.data import augment
from imprint.data import draws as d
from imprint.data.augment import ViewEngine
from imprint.data.boxes import boxes
from imprint.data.view_recipes import byol_views, dino_views, evaluation_views, mae_views, simclr_views
from imprint.data.views import CenterCrop, Crop, Look, View

F = pytest.importorskip("torchvision.transforms.v2.functional")
MODES: Any = pytest.importorskip("torchvision.transforms").InterpolationMode
PHOTOGRAPHS = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
JPEGS = [simplejpeg.encode_jpeg(np.ascontiguousarray(p), quality=92) for p in PHOTOGRAPHS]


def allocate(engine: ViewEngine, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.zeros((v, batch, *rest), engine.dtype) for name, (v, *rest) in engine.shapes().items()}


def rendered(engine: ViewEngine, images: list[Any], epoch: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    out, drawn = allocate(engine, len(images)), engine.draw(1, epoch, np.arange(len(images)))
    for b, image in enumerate(images):
        engine.render(image, drawn, b, out)
    return out


def by_torchvision(view: View, picture: Any, drawn: d.ViewDraws, b: int, copy: int) -> torch.Tensor:
    """Apply torchvision's operators with the parameters that were drawn."""
    assert isinstance(view.crop, Crop)
    size, mode = view.crop.size, getattr(MODES, view.crop.interpolation.upper())
    box = boxes(view.crop, drawn, b, *picture.shape[:2])[copy]
    top, left, height, width = round(box[0]), round(box[4]), round(box[1] * size), round(box[5] * size)
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    x = F.resized_crop(x, top, left, height, width, [size, size], mode, antialias=True)
    look = drawn.look_BVP[b, copy].tolist()
    x = F.horizontal_flip(x) if look[d.FLIP] else x
    operators = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for n in map(int, look[d.FIRST_OPERATION : d.FIRST_OPERATION + 4]):
        x = operators[n](x, look[d.FIRST_FACTOR + n]) if n >= 0 else x
    x = F.rgb_to_grayscale(x, 3) if look[d.GREY] else x
    if look[d.SIGMA]:
        side = int(np.ceil(view.look_of(copy).blur_kernel * size)) // 2 * 2 + 1
        x = F.gaussian_blur(x, [side, side], [look[d.SIGMA], look[d.SIGMA]])
    return F.solarize(x, 128) if look[d.SOLARISE] else x


@pytest.mark.parametrize("views", [simclr_views(), byol_views(), dino_views(), mae_views()])
def test_views_are_torchvisions(views: tuple[View, ...]) -> None:
    engine = ViewEngine(views)
    images = PHOTOGRAPHS * 6
    drawn, out = engine.draw(5, 2, np.arange(len(images))), allocate(engine, len(images))
    errors = []
    for b, picture in enumerate(images):
        engine.render(picture, drawn, b, out)
        for view in views:
            for copy in range(view.count):
                expected = by_torchvision(view, picture, drawn[view.name], b, copy)
                error = np.abs(out[view.name][copy, b].astype(int) - expected.numpy())
                if drawn[view.name].look_BVP[b, copy, d.SOLARISE]:
                    error = np.minimum(error, 255 - error)  # one level at the threshold turns into its opposite
                errors.append((error.mean(), np.percentile(error, 99), error.max()))
    mean, most, _ = np.array(errors).max(0)
    assert mean <= 0.8 and most <= 4, f"worst view: mean {mean:.2f}, 99th percentile {most}"
    assert np.mean([e[0] for e in errors]) <= 0.35


def test_evaluation_is_resize_then_centre_crop() -> None:
    engine = ViewEngine(evaluation_views(224))
    out = rendered(engine, PHOTOGRAPHS)["eval"][0]
    for picture, got in zip(PHOTOGRAPHS, out, strict=True):
        x = torch.from_numpy(picture).permute(2, 0, 1)
        x = F.center_crop(F.resize(x, [256], MODES.BICUBIC, antialias=True), [224, 224])
        error = np.abs(got.astype(int) - x.numpy())
        # torchvision rounds the longer side down to whole pixels before it resamples; so do we
        assert error.max() <= 6 and error.mean() <= 0.3


def test_bytes_and_pixels_give_the_same_views() -> None:
    engine = ViewEngine(dino_views())
    pixels = [simplejpeg.decode_jpeg(data) for data in JPEGS]
    a, b = rendered(engine, JPEGS), rendered(engine, pixels)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_threads_share_an_engine() -> None:
    engine = ViewEngine(dino_views(96, local_size=32))
    images = JPEGS * 8
    expected = rendered(engine, images)
    out, drawn = allocate(engine, len(images)), engine.draw(1, 0, np.arange(len(images)))

    def work(start: int) -> None:
        for b in range(start, len(images), 4):
            engine.render(images[b], drawn, b, out)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(out[name], expected[name]) for name in out)


def test_only_the_own_rows_are_written() -> None:
    engine = ViewEngine(simclr_views(50, blur=1.0))
    out = allocate(engine, 3)
    out["global"][:] = 77
    engine.render(JPEGS[0], engine.draw(0, 0, [0, 1, 2]), 1, out)
    assert (out["global"][:, [0, 2]] == 77).all() and (out["global"][:, 1] != 77).mean() > 0.5


def test_a_view_depends_on_its_key_only() -> None:
    engine = ViewEngine(simclr_views(32))
    whole = rendered(engine, JPEGS)
    out = allocate(engine, 1)
    engine.render(JPEGS[2], engine.draw(1, 0, [2]), 0, out)
    assert np.array_equal(out["global"][:, 0], whole["global"][:, 2])
    assert not np.array_equal(rendered(engine, JPEGS, epoch=1)["global"], whole["global"])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    look = Look(flip=1.0, brightness=0.4, contrast=0.4, saturation=0.5, hue=0.1, jitter=1.0, grey=1.0, blur=1.0)
    engine = ViewEngine([View(name="v", count=2, crop=Crop(size=40), look=look)], channels=channels)
    stack = np.concatenate(PHOTOGRAPHS[:1] * 2, axis=2)[..., :channels]
    out = rendered(engine, [stack, stack])["v"]
    assert out.shape == (2, 2, channels, 40, 40)
    if channels == 1:  # contrast is about the channel's own mean, as torchvision's is
        drawn = engine.draw(1, 0, [0, 1])["v"]
        crop = View(name="v", crop=Crop(size=40), look=look)
        expected = by_torchvision(crop, stack, drawn, 1, 0)
        assert np.abs(out[0, 1].astype(int) - expected.numpy()).max() <= 2
    elif channels == 5:  # equal channels stay equal
        assert np.array_equal(out[:, :, 0], out[:, :, 3])


def test_sixteen_bits_agree_with_eight() -> None:
    look = Look(
        flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=1.0, grey=0.2, blur=0.5, solarise=0.2
    )
    view = View(name="v", count=4, crop=Crop(size=64, interpolation="bicubic"), look=look)
    low = rendered(ViewEngine([view]), PHOTOGRAPHS)["v"].astype(np.int64)
    deep = [p.astype(np.uint16) * np.uint16(257) for p in PHOTOGRAPHS]
    high = rendered(ViewEngine([view], dtype=np.uint16), deep)["v"]
    assert high.dtype == np.uint16
    error = np.abs(high / 257.0 - low)
    assert error.mean() < 2.0 and np.percentile(error, 99) < 6  # 8 bits truncate at each of the five operations
    assert len(np.unique(high)) > 2000, "16 bits hold more levels than 8"


def test_depths_are_converted() -> None:
    view = View(name="v", crop=CenterCrop(size=32, resize=32))
    picture = PHOTOGRAPHS[0]
    eight = rendered(ViewEngine([view]), [picture])["v"]
    assert np.array_equal(rendered(ViewEngine([view]), [picture.astype(np.uint16) * np.uint16(257)])["v"], eight)
    sixteen = rendered(ViewEngine([view], dtype=np.uint16), [picture])["v"]
    assert np.abs(sixteen / 257.0 - eight).max() <= 1.5


def test_arrays_of_any_layout_are_left_alone() -> None:
    engine = ViewEngine(simclr_views(32))
    picture = np.ascontiguousarray(PHOTOGRAPHS[1])
    expected = rendered(engine, [picture])["global"]
    frozen = picture.copy()
    frozen.flags.writeable = False
    turned = np.asfortranarray(picture)
    assert np.array_equal(rendered(engine, [frozen])["global"], expected)
    assert np.array_equal(rendered(engine, [turned])["global"], expected)
    assert np.array_equal(frozen, picture)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 3), (5, 17)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    out = rendered(ViewEngine(dino_views(48, local_size=8, blur=1.0)), [picture] * 3)
    assert out["global"].shape == (2, 3, 3, 48, 48)
    flat = np.full((*shape, 3), 200, np.uint8)
    assert (rendered(ViewEngine(mae_views(20)), [flat])["global"] == 200).all(), "filters sum to one up to the border"


@pytest.mark.parametrize(("factor", "limit"), [(2, 3.0), (4, 3.5), (8, 4.0)])
def test_a_jpeg_is_decoded_smaller_where_all_crops_allow_it(
    factor: int, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    decode = augment.decode_pixels

    def spy(data: bytes, header: Any, channels: int, used: int = 1, buffer: Any = None) -> Any:
        seen.append(used)
        return decode(data, header, channels, used, buffer)

    monkeypatch.setattr(augment, "decode_pixels", spy)
    whole: Any = None
    crop = Crop(size=300 // factor, scale=(1.0, 1.0), ratio=whole)  # the shortest side of the photographs is 300
    engine = ViewEngine([View(name="v", crop=crop)])
    small = rendered(engine, JPEGS)["v"].astype(int)
    assert seen == [factor] * 4
    monkeypatch.setattr(augment, "REDUCTION_MARGIN", 1e9)
    full = rendered(engine, JPEGS)["v"].astype(int)
    assert seen[4:] == [1] * 4
    error = np.abs(small - full)
    assert error.mean() < limit and np.percentile(error, 99) < 16, "the worst case: exactly at the bound"
    assert np.abs((small - full).mean()) < 0.3, "nothing gets brighter, nothing moves"
    shifted = np.abs(small[..., 1:] - full[..., :-1]).mean()
    assert error.mean() < 0.5 * shifted


def test_one_crop_that_needs_more_keeps_the_full_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = None
    views = [
        View(name="whole", crop=Crop(size=32, scale=(1.0, 1.0), ratio=whole)),
        View(name="part", crop=Crop(size=150, scale=(0.2, 0.2))),
    ]
    seen = []
    decode = augment.decode_pixels
    monkeypatch.setattr(augment, "decode_pixels", lambda *a: seen.append(a[3]) or decode(*a))
    rendered(ViewEngine(views), [JPEGS[0]])
    rendered(ViewEngine(views[:1]), [JPEGS[0]])
    assert seen == [1, 8]


@pytest.mark.parametrize(
    "image",
    [b"", b"nothing", np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_bad_images_are_named(image: Any) -> None:
    engine = ViewEngine(simclr_views(16))
    with pytest.raises(BadImage):
        engine.render(image, engine.draw(0, 0, [0]), 0, allocate(engine, 1))


def test_gigantic_images_are_refused_before_decoding() -> None:
    engine = ViewEngine(simclr_views(16), max_pixels=100_000)
    with pytest.raises(BadImage, match="too-large"):
        engine.render(JPEGS[0], engine.draw(0, 0, [0]), 0, allocate(engine, 1))


def test_views_that_cannot_be_rendered() -> None:
    with pytest.raises(ConfigError, match="'eval'.*resize"):
        ViewEngine([View(name="eval", crop=CenterCrop(size=224, resize=200))])
    with pytest.raises(ConfigError, match="uint8 or uint16"):
        ViewEngine(simclr_views(16), dtype=np.float32)
    with pytest.raises(ConfigError, match="impossible"):
        ViewEngine([View(name="v", crop=Crop(size=0))])
