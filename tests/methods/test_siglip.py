"""SigLIP's step against the paper's loop, its start, and what decays."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.siglip import SigLIP, SigLIPConfig
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)
TINY = SigLIPConfig(vocabulary=60, context=10, text_width=16, text_layers=1, text_heads=2)


def method(**changes):
    torch.manual_seed(0)
    arch = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch=arch)
    return SigLIP(dataclasses.replace(TINY, **changes), encoder)


def batch(rows=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, 8), generator=generator)
    for row in range(rows):
        size = 3 + row
        ids[row, 0], ids[row, min(7, size - 1)], ids[row, size:] = 2, 3, -1
    images = torch.randn(1, rows, 3, 32, 32, generator=generator)
    return Batch(views={"global": images}, tokens={"caption": ids}, index_B=torch.arange(rows))


@pytest.mark.parametrize("projection", [0, 24])
def test_loss_is_that_of_every_pair_by_itself(projection):
    net, data = method(projection=projection), batch()
    out = net(data, T)
    pictures = net.encoder.project(net.towers.vision(data.views["global"][0]).pooled_BD)
    texts = F.normalize(net.towers.text.rows(data.tokens["caption"]))
    scores = 10 * pictures @ texts.T - 10
    sign = 2 * torch.eye(6) - 1
    torch.testing.assert_close(out.loss, -F.logsigmoid(sign * scores).sum() / 6)
    assert out.metrics["siglip/bias"].item() == -10 and out.metrics["siglip/scale"].item() == pytest.approx(10)
    assert isinstance(net.towers.projection, torch.nn.Identity) == (projection == 0)


def test_it_starts_near_the_prior_of_few_pairs():
    """With b = -10 a step begins by what pairs miss, about 10 each, and not by the many that are none (Sec. 3.2)."""
    data = batch()
    assert method()(data, T).loss.item() == pytest.approx(10.0, abs=5.0)
    assert method(bias=0.0, scale=1.0)(data, T).loss.item() == pytest.approx(6 * 0.69, abs=1.5)


def test_kernels_alone_decay():
    groups = {group.name: group for group in method().param_groups()}
    bare, decayed = set(groups["no_decay"].names), set(groups["decay"].names)
    assert {"towers.text.token_embedding.weight", "towers.text.pos_embed", "towers.bias", "towers.log_scale"} <= bare
    assert "towers.text.blocks.0.fc1.weight" in decayed and not any(n.endswith("bias") for n in decayed)
    every = [n for n, p in method().named_parameters() if p.requires_grad]
    assert sorted(bare | decayed) == sorted(every)


def test_scale_and_bias_learn():
    net = method()
    net(batch(), T).loss.backward()
    assert net.towers.log_scale.grad.item() != 0 and net.towers.bias.grad.item() != 0


def test_the_paper_recipe_and_its_image_tower():
    paper = recipe("siglip/paper")
    assert paper.optim.betas == (0.9, 0.95) and paper.optim.lr.peak(1) == 1e-3 and paper.batch_size == 32_768
    assert (paper.method.scale, paper.method.bias, paper.method.text_width) == (10, -10, 768)
    (view,) = SigLIP.views(paper.method, 224)
    assert view.crop.scale == (1.0, 1.0) and view.crop.ratio is None
    tower = build_encoder("vit_base_patch16_siglip_224", image_size=32)
    net = SigLIP(TINY, tower)
    with torch.no_grad():
        assert net.encoder.project(net.encoder(torch.randn(1, 3, 32, 32)).pooled_BD).shape == (1, 768)
