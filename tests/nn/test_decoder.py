import torch

from imprint.nn.decoder import Block, PixelDecoder


def test_decoder_puts_tokens_back_where_they_came_from():
    torch.manual_seed(0)
    decoder = PixelDecoder(8, 16, 1, 2, (2, 3), 12)
    cls, kept = torch.randn(2, 1, 8), torch.randn(2, 2, 8)
    order = torch.tensor([[4, 0, 1, 2, 3, 5], [1, 5, 0, 2, 3, 4]])
    restore = order.argsort(1)
    out = decoder(cls, kept, restore)
    assert out.shape == (2, 6, 12)
    # Swapping two kept tokens together with their places changes nothing.
    swapped = order.clone()
    swapped[:, :2] = order[:, [1, 0]]
    torch.testing.assert_close(decoder(cls, kept[:, [1, 0]], swapped.argsort(1)), out)


def test_masked_places_differ_only_by_position():
    decoder = PixelDecoder(8, 16, 0, 2, (2, 2), 3)
    with torch.no_grad():
        decoder.positions_1TD.zero_()
    restore = torch.tensor([[0, 1, 2, 3]])
    out = decoder(torch.randn(1, 1, 8), torch.randn(1, 1, 8), restore)
    torch.testing.assert_close(out[:, 1], out[:, 3])


def test_block_is_attention_then_mlp():
    block = Block(8, 2)
    x = torch.randn(2, 5, 8)
    permutation = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(block(x)[:, permutation], block(x[:, permutation]), atol=1e-5, rtol=1e-5)
