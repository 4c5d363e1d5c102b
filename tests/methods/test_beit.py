import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch, Normalise
from imprint.methods.beit import BEiT, BEiTConfig
from imprint.methods.dvae import DVAE
from imprint.recipes.book import recipe, stages_of
from imprint.train.entry import pretrain_run
from imprint.train.run import Run

T = Progress(0, 10, 5)
CPU = torch.device("cpu")


def encoder_of(config):
    settings = {f.name: getattr(config.encoder, f.name) for f in dataclasses.fields(config.encoder)}
    return build_encoder(**{**settings, "channels": 3, "drop_path": 0.0})


def make(**changes):
    torch.manual_seed(0)
    config = recipe("beit/debug")
    return BEiT(dataclasses.replace(config.method, **changes), encoder_of(config)).train()


def batch_of(count=4, masked=(6, 5, 7, 6)):
    order = torch.rand(1, count, 16).argsort(-1).argsort(-1)
    mask = order < torch.tensor(masked[:count])[:, None]
    batch = Batch(
        views={"global": torch.randn(1, count, 3, 32, 32)}, masks={"global": mask}, index_B=torch.arange(count)
    )
    return batch.prepared(CPU, Normalise())


def dvae_of(vocabulary=32):
    config = recipe("dvae/debug")
    torch.manual_seed(1)
    method = dataclasses.replace(config.method, vocabulary=vocabulary)
    return DVAE(method, build_encoder(config.encoder.name, image_size=32, arch=config.encoder.arch))


def test_defaults_are_the_papers():
    cfg = BEiTConfig()
    (view,) = BEiT.views(cfg, 224)
    assert view.crop.scale == (0.08, 1.0) and view.look.flip == 0.5 and view.look.jitter == 1.0
    assert (view.look.brightness, view.look.contrast, view.look.saturation, view.look.hue) == (0.4, 0.4, 0.4, 0.0)
    (mask,) = BEiT.masks(cfg, 224, 16)
    assert (mask.grid, mask.patches, mask.min_block, mask.min_aspect) == ((14, 14), 75, 16, 0.3)
    first, second = stages_of("beit/paper")
    assert (first.name, second.name) == ("dvae", "beit") and first.encoder.image_size == 112
    assert first.method.vocabulary == second.method.vocabulary == 8192
    assert second.optim.lr.peak(2048) == 1.5e-3 and second.encoder.arch.layer_scale == 0.1
    assert stages_of("beit/paper_vit_large")[1].encoder.arch.layer_scale == 1e-5


def test_the_loss_is_the_cross_entropy_of_the_masked_words():
    method, batch = make(), batch_of()
    out = method(batch, T)
    images, mask = batch.views["global"][0], batch.masks["global"][0]
    logits = method.head(method.backbone(images, mask_BN=mask).patches_BND)
    words = method.tokenizer.encode(images)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(logits[mask], words[mask]))
    torch.testing.assert_close(out.metrics["beit/accuracy"], (logits[mask].argmax(-1) == words[mask]).float().mean())
    everywhere = make(recover="all")(batch, T).loss
    torch.testing.assert_close(everywhere, torch.nn.functional.cross_entropy(logits.flatten(0, 1), words.flatten()))


def test_what_is_masked_is_not_seen():
    method, batch = make(), batch_of()
    images, mask = batch.views["global"][0], batch.masks["global"][0]
    cells = mask.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(cells, 9.0, images)
    a, b = (method.backbone(x, mask_BN=mask).patches_BND for x in (images, changed))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tokenizer", ["random", "pixels"])
def test_everything_learns_and_nothing_else_does(tokenizer):
    method = make(tokenizer=tokenizer)
    method(batch_of(), T).loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    if tokenizer == "random":
        assert "tokenizer.codes_DK" in method.state_dict() and not list(method.tokenizer.parameters())


def test_the_start_is_that_of_the_public_code():
    method = make()
    blocks = method.backbone.model.blocks
    for layer, block in enumerate(blocks, 1):
        assert block.attn.proj.weight.abs().max() <= 0.02 / math.sqrt(2 * layer) + 1e-9
        assert block.attn.qkv.weight.abs().max() <= 0.02
        assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02 * 0.54, rel=0.05)
    assert method.head.weight.abs().max() <= 0.02
    assert method.backbone.model.pos_embed is None


def test_the_dvae_of_an_earlier_run_names_the_words():
    method, previous = make(tokenizer="dvae"), dvae_of()
    batch = batch_of()
    with pytest.raises(ConfigError, match="imprint pretrain dvae"):
        method(batch, T)
    method.inherit(previous)
    method.train()
    assert not method.tokenizer.training and not any(p.requires_grad for p in method.tokenizer.parameters())
    images = batch.views["global"][0]
    assert torch.equal(method._words(images, (4, 4)), previous.tokenizer.encode(images))
    method(batch, T).loss.backward()
    assert all(p.grad is None for p in method.tokenizer.parameters())
    # A later run of BEiT takes over everything, the tokenizer too.
    later = make(tokenizer="dvae")
    later.inherit(method)
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in later.state_dict().items())


def test_starts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="vocabulary 64"):
        make(tokenizer="dvae").inherit(dvae_of(64))
    with pytest.raises(ConfigError, match="cannot start from a DVAE"):
        make().inherit(dvae_of())
    with pytest.raises(ConfigError, match="simclr"):
        BEiT(BEiTConfig(), build_encoder("resnet18", image_size=32))


def test_pictures():
    batch = batch_of()
    images, mask = batch.views["global"][0], batch.masks["global"][0]
    seen = ~mask.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)
    assert set(make().reconstruct(batch, T)) == {"image", "visible"}
    pixels = make(tokenizer="pixels").reconstruct(batch, T)
    torch.testing.assert_close(pixels["reconstruction"][seen], images[seen])
    method = make(tokenizer="dvae")
    method.inherit(dvae_of())
    pictures = method.reconstruct(batch, T)
    assert set(pictures) == {"image", "visible", "reconstruction", "true words"}
    assert pictures["visible"][~seen].abs().max() == 0
    assert {p.shape for p in pictures.values()} == {(4, 3, 32, 32)}
    # Where the head names the true words, the two decodings are one.
    words = method.tokenizer.encode(images)
    method.head.forward = lambda x: torch.nn.functional.one_hot(words, 32).float()
    again = method.reconstruct(batch, T)
    torch.testing.assert_close(again["reconstruction"], again["true words"])


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (48, 6, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2))
    plan = tuple(dataclasses.replace(stage, device="cpu", workers=1) for stage in stages_of("beit/debug_dvae"))
    folder = tmp_path_factory.mktemp("beit") / "run"
    return pretrain_run(plan, folder, source=source), folder, source


def weights(run):
    checkpoint = run.checkpoints.latest()
    assert checkpoint is not None
    return checkpoint.tensors("model")


def test_two_stages_pass_the_tokenizer_on(staged):
    run, folder, _ = staged
    first, second = weights(Run.open(folder / "stage-1")), weights(Run.open(folder / "stage-2"))
    names = [n for n in first if n.startswith("tokenizer.")]
    assert run.finished and len(names) > 20
    assert [n for n in names if not torch.equal(first[n], second[n])] == []
    losses = [m for m in Run.open(folder / "stage-2").metrics() if "loss" in m]
    assert [m["step"] for m in losses] == list(range(1, 9)) and all(np.isfinite(m["loss"]) for m in losses)


def test_the_second_stage_resumes_to_the_bit(staged, tmp_path):
    _, folder, source = staged
    shutil.copytree(folder, tmp_path / "broken")
    stage = Run.open(tmp_path / "broken" / "stage-2")
    assert stage.checkpoints.steps()[-2:] == [4, 8]
    shutil.rmtree(stage.checkpoints.path(8))
    (stage.path / "encoder.safetensors").unlink()
    pretrain_run(None, tmp_path / "broken", resume=True, source=source)
    whole, again = weights(Run.open(folder / "stage-2")), weights(Run.open(tmp_path / "broken" / "stage-2"))
    assert whole.keys() == again.keys() and [n for n in whole if not torch.equal(whole[n], again[n])] == []
