"""`imprint look` and its functions: every kind of picture, for encoders and images of many kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.stored import save_encoder
from imprint.cli.main import main
from imprint.core.errors import ConfigError, DataError
from imprint.viz import look
from imprint.viz.eyes import feature_map, open_eye, open_images, view
from imprint.viz.looks import (
    KINDS,
    AttentionLook,
    CorrespondenceLook,
    MapLook,
    NeighboursLook,
    PcaLook,
    kind,
)


@pytest.fixture(scope="module")
def photos(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("photos") / "images", per_class=6)


def vit(side: int = 32, patch: int = 8, channels: int = 3) -> Encoder:
    torch.manual_seed(0)
    arch = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    return build_encoder("vit_tiny_patch16_224", image_size=side, patch_size=patch, channels=channels, arch=arch).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_encoder(vit(), folder)
    return folder


@pytest.fixture(scope="module")
def cnn() -> Encoder:
    torch.manual_seed(0)
    return build_encoder("resnet10t", image_size=64).eval()


def size_of(path: Path) -> tuple[int, int]:
    return cv2.imread(str(path)).shape[:2]


@pytest.mark.parametrize("name", [k.name for k in KINDS])
def test_every_kind_from_the_command_line(
    name: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / f"{name}.png"
    assert main(["look", name, "--encoder", str(run), "--data", str(photos), "--out", str(out), "--side", "48"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    first = out.read_bytes()
    height, width = size_of(out)
    assert height > 48 and width > 48
    assert main(["look", name, "--encoder", str(run), "--data", str(photos), "--out", str(out), "--side", "48"]) == 0
    assert out.read_bytes() == first


def test_two_models_of_other_sizes_and_heads_side_by_side(run: Path, photos: Path, tmp_path: Path) -> None:
    other = vit(64, 16)
    one = size_of(look.save_attention(run, photos, tmp_path / "1.png", AttentionLook(images=2, side=40)))
    two = size_of(look.save_attention([run, other], photos, tmp_path / "2.png", AttentionLook(images=2, side=40)))
    assert two[1] == one[1] == 5 * 44 - 4 + 16  # image, mean, three heads
    assert two[0] > one[0] + 2 * 40
    kept = look.save_attention([run, other], photos, tmp_path / "3.png", AttentionLook(images=2, side=40, keep=0.6))
    assert size_of(kept) == two and kept.read_bytes() != (tmp_path / "2.png").read_bytes()


@pytest.mark.parametrize("save", [look.save_pca, look.save_correspondence, look.save_norms])
def test_cnns_and_swins_show_their_maps(save: object, cnn: Encoder, photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    swin = build_encoder("swin_tiny_patch4_window7_224", image_size=64, arch={"layers": (1, 1, 1, 1)}).eval()
    assert size_of(save([cnn, swin], photos, tmp_path / "x.png"))[0] > 200  # type: ignore[operator]


def test_attention_of_a_cnn_is_refused_by_name(cnn: Encoder, photos: Path, tmp_path: Path) -> None:
    for save in (look.save_attention, look.save_rollout):
        with pytest.raises(ConfigError, match="'resnet10t' has no attention.*choose a ViT"):
            save(cnn, photos, tmp_path / "x.png")


def test_the_stage_looked_at_has_eight_places_a_side(cnn: Encoder, photos: Path) -> None:
    for side, places in ((64, 8), (128, 8), (16, 4)):
        eye = open_eye(cnn, image_size=side, device="cpu")
        seen = view(eye, open_images(photos, cnn), [0, 5])
        features, grid = feature_map(eye, seen.inputs_BCHW)
        assert grid == (places, places) and features.shape[:2] == (2, places**2)
    deep, grid = feature_map(eye, seen.inputs_BCHW, layer=-1)
    assert grid == (1, 1) and torch.isfinite(deep).all()


def test_grey_images_and_grey_encoders(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "grey").mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "grey" / f"{i}.png"), np.full((32, 32), 60 * i, np.uint8))
    source = open_images(tmp_path / "grey", vit())
    assert source.channels == 3 and open_images(photos, vit(channels=1)).channels == 1
    seen = view(open_eye(vit(), device="cpu"), source, [1])
    assert seen.pictures[0].min() == seen.pictures[0].max() == 60
    for encoder, data in ((vit(), tmp_path / "grey"), (vit(channels=1), photos)):
        look.save_attention(encoder, data, tmp_path / "a.png")
        look.save_neighbours(encoder, data, tmp_path / "n.png", NeighboursLook(neighbours=2))
    np.save(tmp_path / "five.npy", np.random.default_rng(0).integers(0, 255, (4, 32, 32, 5), dtype=np.uint8))
    look.save_pca(vit(channels=5), tmp_path / "five.npy", tmp_path / "p.png")
    look.save_pca(vit(), tmp_path / "five.npy", tmp_path / "p.png")  # the first three, as in every evaluation
    with pytest.raises(ConfigError, match="5 channels and .* takes 7"):
        look.save_pca(vit(channels=7), tmp_path / "five.npy", tmp_path / "p.png")


def test_two_image_files_correspond(run: Path, photos: Path, tmp_path: Path) -> None:
    files = [photos / "disc" / "00.png", photos / "disc" / "01.png"]
    named = look.save_correspondence(run, files, tmp_path / "a.png")
    rows = look.save_correspondence(run, photos, tmp_path / "b.png", CorrespondenceLook(rows=(0, 1)))
    assert named.read_bytes() == rows.read_bytes()
    with pytest.raises(ConfigError, match="two rows"):
        look.save_correspondence(run, photos, tmp_path / "c.png", CorrespondenceLook(rows=(0, 1, 2)))
    with pytest.raises(DataError, match="two images"):
        look.save_correspondence(run, files[:1], tmp_path / "c.png")


def test_components_come_from_the_whole_set(run: Path, photos: Path, tmp_path: Path) -> None:
    few = look.save_pca(run, photos, tmp_path / "few.png", PcaLook(images=3, fit=3))
    many = look.save_pca(run, photos, tmp_path / "many.png", PcaLook(images=3, fit=18))
    assert size_of(few) == size_of(many) and few.read_bytes() != many.read_bytes()


def test_a_map_as_a_page_holds_names_as_text(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        cv2.imwrite(str(folder / "x.png"), np.full((32, 32, 3), 20 * i, np.uint8))
        (folder / "x.png").rename(folder / f"<img src=x onerror=alert({i})>.png")
    document = look.save_map(run, folder, tmp_path / "m.html", MapLook(sample=10)).read_text()
    assert "<img src=x" not in document and "\\u003cimg src=x" in document
    with pytest.raises(ConfigError, match="one encoder"):
        look.save_map([run, run], folder, tmp_path / "m.html")


def test_reconstructions_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "config.json").write_text('{"name": "mae"}')
    with pytest.raises(ConfigError, match="Masked methods"):
        look.save_reconstructions(tmp_path, tmp_path / "r.png")
    pictures = {n: torch.rand(3, 3, 16, 16) for n in ("image", "visible", "reconstruction")}
    save_file(pictures, tmp_path / "samples" / "reconstruct.safetensors")
    assert size_of(look.save_reconstructions(tmp_path, tmp_path / "r.png")) == (3 * 112 + 8, 3 * 112 + 8)


def test_damaged_images_are_left_out(run: Path, make_images: Callable[..., Path], tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", per_class=2)
    (images / "disc" / "00.png").write_bytes(b"not an image")
    whole = size_of(look.save_norms(run, images, tmp_path / "n.png"))
    assert whole[1] == 5 * 132 - 4 + 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["atention"], "Did you mean 'attention'"),
        (["attention", "--kep", "0.6"], "Did you mean '--keep'"),
        (["attention", "--keep", "much"], "--keep"),
        (["attention", "--keep", "1.5"], "share of attention"),
        (["attention", "--layer", "7"], "layer 7"),
        (["attention", "--image-size", "30"], "patch size 8"),
        (["rollout", "--residual", "1"], "residual"),
        (["pca", "--rows", "99"], "row 99"),
        (["pca", "--images", "0"], "images must be 1"),
        (["correspondence", "--point", "2", "0"], "point"),
        (["map", "--layouts", "tsne"], "--layouts"),
    ],
)
def test_what_cannot_be_is_said_in_one_paragraph(
    words: list[str], message: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--encoder", str(run), "--data", str(photos), "--out", str(tmp_path / "x.png")]
    assert main(["look", *words, *rest]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_help_names_kinds_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "attention", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(k.name in said and callable(getattr(look, k.function)) for k in KINDS)
    assert "--keep" in said and "--heads" in said
    assert kind("map").config is MapLook
