import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.methods.maskfeat import MaskFeat, MaskFeatConfig
from imprint.methods.simclr import SimCLR, SimCLRConfig
from imprint.nn.tokenizers import RandomProjectionTokenizer
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)


def encoder_of(**changes):
    return build_encoder(
        "vit_tiny_patch16_224", image_size=32, patch_size=8, arch=recipe("maskfeat/debug").encoder.arch, **changes
    )


def method_of(seed=0, **changes) -> MaskFeat:
    torch.manual_seed(seed)
    return MaskFeat(MaskFeatConfig(min_block=2, **changes), encoder_of())


def batch_of(count=4, masked=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(1, count, 16, generator=generator).argsort(-1) < masked
    mask[0, 0, mask[0, 0].nonzero()[0]] = False  # one image has a patch less
    images = torch.randn(1, count, 3, 32, 32, generator=generator)
    batch = Batch(views={"global": images}, masks={"global": mask}, index_B=torch.arange(count))
    return batch.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = MaskFeatConfig()
    assert (cfg.target, cfg.bins, cfg.cell, cfg.mask_ratio) == ("hog", 9, 8, 0.4)
    (view,) = MaskFeat.views(cfg, 224)
    assert view.crop.scale == (0.5, 1.0) and view.look.flip == 0.5 and view.look.jitter == 0.0
    (mask,) = MaskFeat.masks(cfg, 224, 16)
    assert (mask.grid, mask.patches, mask.min_block) == ((14, 14), 78, 16)
    optim = recipe("maskfeat/paper").optim
    assert (optim.lr.base, optim.lr.per, optim.clip) == (2e-4, 256, 0.02)


def test_the_head_has_108_values_for_patches_of_16():
    torch.manual_seed(0)
    arch = recipe("maskfeat/debug").encoder.arch
    encoder = build_encoder("vit_tiny_patch16_224", image_size=64, patch_size=16, arch=arch)
    assert MaskFeat(MaskFeatConfig(), encoder).head.out_features == 108


@pytest.mark.parametrize("target", ["hog", "pixels", "tokens", "features"])
def test_every_target_trains_and_what_gives_it_does_not(target):
    teacher = "random:vit_tiny_patch16_224" if target == "features" else ""
    method = method_of(target=target, teacher=teacher, vocabulary=32)
    out = method(batch_of(), T)
    out.loss.backward()
    assert out.loss.isfinite() and all(value.ndim == 0 for value in out.metrics.values())
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for n, p in method.named_parameters() if n.startswith(("teacher", "tokenizer")))
    assert method.train().teacher is None or not method.teacher.training
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = method(batch_of(), T).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.9 * out.loss


@pytest.mark.parametrize("target", ["hog", "pixels", "tokens"])
def test_only_masked_patches_count_and_masked_pixels_are_hidden(target):
    method = method_of(target=target, vocabulary=32)
    batch = batch_of()
    grown = batch.masks["global"].view(1, 4, 1, 4, 1, 4, 1).expand(-1, -1, 3, -1, 8, -1, 8).reshape(1, 4, 3, 32, 32)
    hidden = batch.views["global"].masked_fill(grown, 9.0)
    out = [
        method.backbone(v["global"][0], mask_BN=batch.masks["global"][0]).patches_BND
        for v in (batch.views, {"global": hidden})
    ]
    torch.testing.assert_close(out[0], out[1])
    if target != "hog":  # a histogram sees one pixel beyond its patch
        moved = torch.where(grown, batch.views["global"], batch.views["global"] + 1.0)
        before, after = (
            method.targets(x[0])[batch.masks["global"][0]] if target == "pixels" else method._codes(x[0])
            for x in (batch.views["global"], moved)
        )
        if target == "pixels":
            torch.testing.assert_close(before, after)


def test_two_processes_with_unequal_masks_average_to_one(monkeypatch):
    method = method_of()
    whole = batch_of(count=6)
    halves = [batch_of_part(whole, 0, 3), batch_of_part(whole, 3, 6)]
    rows = [half.masks["global"].sum().float() for half in halves]
    assert rows[0] != rows[1]
    monkeypatch.setattr("imprint.methods.maskfeat.all_reduce_mean", lambda x: (rows[0] + rows[1]) / 2)
    parts = [method(half, T).loss for half in halves]
    monkeypatch.undo()
    torch.testing.assert_close((parts[0] + parts[1]) / 2, method(whole, T).loss)


def batch_of_part(batch, start, stop):
    return batch.part(start, stop).prepared(torch.device("cpu"), Normalise())


def test_a_discrete_vae_brings_its_tokenizer_and_any_run_its_encoder():
    class Tokenized(SimCLR):
        pass

    torch.manual_seed(1)
    previous = Tokenized(SimCLRConfig(), encoder_of())
    previous.tokenizer = RandomProjectionTokenizer(4, 3, 16)
    method = method_of(target="tokens")
    method.inherit(previous)
    assert method.head.out_features == 16 and method.tokenizer is not previous.tokenizer
    assert method._codes(torch.randn(2, 3, 32, 32)).shape == (2, 16), "read at half the size, one token per patch"
    imitating = method_of(target="features")
    with pytest.raises(ConfigError, match="needs an encoder to imitate"):
        imitating(batch_of(), T)
    imitating.inherit(previous)
    assert imitating(batch_of(), T).loss.isfinite()
    for name, value in previous.encoder.state_dict().items():
        assert torch.equal(imitating.teacher.state_dict()[name], value)
    with pytest.raises(ConfigError, match="cannot start from a Tokenized"):
        method_of(target="hog").inherit(previous)
    other = method_of(seed=5)
    other.inherit(first := method_of())
    assert torch.equal(other.head.weight, first.head.weight)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("hog", {"image", "visible", "hog: true", "hog: predicted", "hog: visible"}),
        ("pixels", {"image", "visible", "reconstruction"}),
        ("tokens", {"image", "visible"}),
    ],
)
def test_pictures_show_what_was_hidden_and_what_was_predicted(target, names):
    method = method_of(target=target, vocabulary=32)
    batch = batch_of()
    pictures = method.reconstruct(batch, T)
    assert set(pictures) == names
    assert all(p.shape[:2] == (4, 3) and p.isfinite().all() for p in pictures.values())
    grown = batch.masks["global"][0].view(4, 1, 4, 1, 4, 1).expand(-1, 3, -1, 8, -1, 8).reshape(4, 3, 32, 32)
    assert (pictures["visible"][grown] == 0).all()
    if target == "hog":
        cells = batch.masks["global"][0].view(4, 1, 4, 1, 4, 1).expand(-1, 3, -1, 15, -1, 15).reshape(4, 3, 60, 60)
        true, predicted = pictures["hog: true"], pictures["hog: predicted"]
        torch.testing.assert_close(true[~cells], predicted[~cells])
        assert not torch.equal(true[cells], predicted[cells])
        assert (pictures["hog: visible"][cells] == -2).all()


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="divisor of 8"):
        method_of(cell=6)
    with pytest.raises(ConfigError, match="simclr"):
        MaskFeat(MaskFeatConfig(), build_encoder("resnet18", image_size=32))
    for name in ("paper_pixels", "paper_features", "paper_vit_large"):
        assert dataclasses.is_dataclass(recipe(f"maskfeat/{name}"))
