import torch

from imprint.nn.tile_fusion import TileFusion


def test_the_authors_head():
    head = TileFusion(16, 9, 50)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes["tile.0.weight"] == (1024, 16) and shapes["fusion.0.weight"] == (4096, 9 * 1024)
    assert shapes["classifier.weight"] == (50, 4096)
    assert sum(isinstance(m, torch.nn.Dropout) for m in head.modules()) == 2


def test_tiles_are_embedded_alone_and_their_order_counts():
    torch.manual_seed(0)
    head = TileFusion(8, 4, 5, tile_width=6, fusion_width=0, norm=True, dropout=0.0).eval()
    features = torch.randn(3, 4, 8)
    embedded = head.embed(features.flatten(0, 1)).unflatten(0, (3, 4))
    torch.testing.assert_close(head.embed(features[1, 2:3]), embedded[1, 2:3])
    logits = head(embedded)
    assert logits.shape == (3, 5) and head.classifier.in_features == 24
    assert not torch.allclose(head(embedded[:, [1, 0, 2, 3]]), logits)
    assert head.tile[0].bias is None  # the norm's shift is the bias
