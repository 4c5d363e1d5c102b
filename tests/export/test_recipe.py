import pytest

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.export.recipe import refuse_cifar_stem, timm_call, timm_lines


def test_the_call_holds_only_what_shapes_the_model():
    encoder = build_encoder("resnet18", image_size=64, drop_path=0.1)
    assert timm_call(encoder) == ("resnet18", {"num_classes": 0})
    assert timm_lines(encoder, "checkpoint_path='x'").endswith(
        "model = timm.create_model('resnet18', num_classes=0, checkpoint_path='x').eval()"
    )


def test_a_vit_says_its_sizes():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=4, channels=1, arch={"depth": 1})
    assert timm_call(encoder) == (
        "vit_tiny_patch16_224", {"num_classes": 0, "in_chans": 1, "img_size": 32, "patch_size": 4, "depth": 1}
    )  # fmt: skip


def test_the_cifar_stem_is_refused_where_timm_must_build_it():
    refuse_cifar_stem(build_encoder("resnet18", image_size=32), "timm")
    with pytest.raises(ConfigError, match="no timm form"):
        refuse_cifar_stem(build_encoder("resnet18", image_size=32, stem="cifar"), "timm")
