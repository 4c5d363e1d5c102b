import pytest

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.stored import save_encoder
from imprint.recipes import scale
from imprint.recipes.book import recipe


@pytest.mark.parametrize(("size", "grid"), [(32, 8), (64, 8), (96, 12), (224, 14)])
def test_patches_divide_the_image(size, grid):
    assert size / scale.patch(size) == grid
    assert scale.local(size, scale.patch(size)) % scale.patch(size) == 0


def test_another_backbone_takes_its_own_shape():
    dino = recipe("dino", image_size=32).encoder
    resnet = scale.with_backbone(dino, "resnet18")
    assert (resnet.patch_size, resnet.positions, resnet.stem) == (None, None, "cifar")
    vit = scale.with_backbone(recipe("simclr", image_size=32).encoder, "vit_small_patch16_224")
    assert (vit.patch_size, vit.stem) == (4, "imagenet")
    mae = recipe("mae", image_size=32).encoder
    assert scale.with_backbone(mae, "vit_small_patch16_224").positions == "sincos"
    assert scale.with_backbone(mae, mae.name) == mae


def test_a_stored_encoder_keeps_its_shape(tmp_path):
    arch = Arch(embed_dim=32, depth=2, num_heads=2)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch=arch)
    folder = str(save_encoder(encoder, tmp_path / "enc", mean=(0.5,), std=(0.5,)).parent)
    settings = scale.with_backbone(recipe("dino", image_size=32).encoder, folder)
    assert (settings.patch_size, settings.arch) == (None, Arch())
    again = build_encoder(folder, image_size=settings.image_size, patch_size=settings.patch_size, arch=settings.arch)
    assert (again.patch_size, again.embed_dim) == (8, 32)
