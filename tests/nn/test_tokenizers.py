import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.methods.dvae import DVAEConfig
from imprint.nn.discrete_vae import ConvDecoder, DiscreteVAE, gumbel_softmax
from imprint.nn.tokenizers import RandomProjectionTokenizer
from imprint.ops.patchify import normalise_patches, patchify, unpatchify


def conv_encoder(groups=3, image_size=32):
    arch = Arch(layers=(1,) * groups, channels=(8, 16, 16, 32)[:groups])
    return build_encoder("dvae_encoder", image_size=image_size, arch=arch)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return DiscreteVAE(conv_encoder(), 32, embedding=16, width=8, blocks=1)


@pytest.mark.parametrize("width", [None, 4])
def test_a_random_projection_names_every_word_for_the_patches_that_lie_on_it(width):
    torch.manual_seed(0)
    tokenizer = RandomProjectionTokenizer(4, 3, 64, width)
    # A patch whose projection is the code itself, by the pseudo-inverse, and free of a mean: the patches are centred.
    back = tokenizer.codes_DK.T
    if tokenizer.projection_PD is not None:
        centred = tokenizer.projection_PD - tokenizer.projection_PD.mean(0)
        back = back @ torch.linalg.pinv(centred)
    images = unpatchify(back[None], 4, (8, 8))
    found = tokenizer.encode(images)
    if width is not None:
        assert torch.equal(found, torch.arange(64)[None])
    assert found.unique().numel() >= 60


def test_words_are_those_of_the_nearest_code_whatever_the_chunks(monkeypatch):
    torch.manual_seed(1)
    tokenizer = RandomProjectionTokenizer(4, 3, 50, 8)
    images = torch.randn(3, 3, 16, 24)
    words = tokenizer.encode(images)
    assert words.shape == (3, 24) and words.dtype == torch.int64
    x = torch.nn.functional.normalize(normalise_patches(patchify(images, 4)) @ tokenizer.projection_PD, dim=-1)
    distance = torch.cdist(x.flatten(0, 1), tokenizer.codes_DK.T)
    assert torch.equal(words.flatten(), distance.argmin(1))
    # Brightness and contrast of a patch do not change its word, and mixed precision neither.
    assert torch.equal(tokenizer.encode(2 * images + 1), words)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), words)
    import imprint.nn.tokenizers as module

    real = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda self, n: real(self, 5))
    assert torch.equal(module.nearest(x.flatten(0, 1), tokenizer.codes_DK), words.flatten())


def test_random_words_are_a_function_of_the_seed_and_belong_to_the_checkpoint():
    def make(seed):
        torch.manual_seed(seed)
        return RandomProjectionTokenizer(4, 1, 16)

    a, b, c = make(3), make(3), make(4)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(a.encode(images), b.encode(images)) and not torch.equal(a.encode(images), c.encode(images))
    c.load_state_dict(a.state_dict())
    assert torch.equal(a.encode(images), c.encode(images))
    assert not list(a.parameters())


def test_the_grid_follows_the_encoder_that_asks(vae):
    random = RandomProjectionTokenizer(8, 3, 16)
    assert random.grid_for(112) == (14, 14) and vae.grid_for(32) == (8, 8)
    with pytest.raises(ConfigError, match="multiple of 8"):
        random.grid_for(100)
    images = torch.randn(2, 3, 64, 64)
    for tokenizer in (random, vae):
        assert tokenizer.encode_grid(images, (8, 8)).shape == (2, 64)
        own = tokenizer.grid_for(64)
        assert torch.equal(tokenizer.encode_grid(images, own), tokenizer.encode(images))
    # Four groups have a stride of 8: the 14 x 14 words of 112 pixels, half of BEiT's 224.
    assert DiscreteVAE(conv_encoder(4), 16, embedding=4, width=4, blocks=1).grid_for(112) == (14, 14)


def test_halving_a_crop_does_not_alias(vae):
    board = torch.ones(64, 64)
    board[::2, 1::2] = -1
    board[1::2, ::2] = -1
    seen = []
    vae.encode = lambda images: seen.append(images) or images
    vae.encode_grid(board.expand(1, 3, 64, 64), (8, 8))
    assert seen[0].shape[-1] == 32 and seen[0].abs().max() < 0.1


def test_a_discrete_vae_goes_to_words_and_back(vae):
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    words = vae.encode(images)
    assert words.shape == (2, 64) and words.dtype == torch.int64 and 0 <= words.min() and words.max() < 32
    pictures = vae.decode(words, (8, 8))
    assert pictures.shape == images.shape and not pictures.requires_grad
    # One-hot weights are the words.
    hot = torch.nn.functional.one_hot(words, 32).float()
    torch.testing.assert_close(vae.image(vae.decode_soft(hot, (8, 8))), pictures)
    assert torch.equal(vae.encode(images), words)


def test_every_word_of_a_discrete_vae_can_be_named(vae):
    with torch.no_grad():
        vae.logits.weight.zero_()
        for k in range(32):
            vae.logits.bias.copy_(torch.arange(32) == k)
            assert (vae.encode(torch.zeros(1, 3, 32, 32)) == k).all()


def test_pixels_are_measured_by_the_range_that_was_seen(vae):
    images = torch.rand(16, 3, 32, 32) * torch.tensor([1.0, 2.0, 4.0])[:, None, None] - 1
    vae.see_range(images)
    unit = vae.to_unit(images)
    assert unit.amin() == 0 and unit.amax() == 1
    torch.testing.assert_close(vae.from_unit(unit), images)
    before = vae.low_C.clone(), vae.high_C.clone()
    vae.see_range(torch.zeros(4, 3, 8, 8))
    assert torch.equal(vae.low_C, before[0]) and torch.equal(vae.high_C, before[1])


def test_the_relaxation_samples_the_codes_and_hardens_as_it_cools():
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = p.log().expand(1, 20_000, 4)
    cold, warm = gumbel_softmax(logits, 1 / 16), gumbel_softmax(logits, 1.0)
    torch.testing.assert_close(cold.sum(-1), torch.ones(1, 20_000))
    # The largest weight is a sample from the codes at any temperature (Gumbel-max).
    for weights in (cold, warm):
        share = torch.bincount(weights.argmax(-1).flatten(), minlength=4) / 20_000
        torch.testing.assert_close(share, p, atol=0.02, rtol=0)
    assert cold.amax(-1).mean() > 0.9 > warm.amax(-1).mean()
    torch.testing.assert_close(gumbel_softmax(logits, 1.0, noise=0.0)[0, 0], p)
    with pytest.raises(ConfigError, match="positive"):
        gumbel_softmax(logits, 0.0)


def test_the_papers_schedules():
    cfg = DVAEConfig()
    at = lambda step: Progress(step, 3_000_000, 2500)  # noqa: E731
    assert cfg.temperature(at(0)) == 1 and cfg.temperature(at(75_000)) == pytest.approx((1 + 1 / 16) / 2)
    assert cfg.temperature(at(150_000)) == cfg.temperature(at(2_000_000)) == 1 / 16
    assert cfg.kl_weight(at(0)) == 0 and cfg.kl_weight(at(5_000)) == pytest.approx(6.6)
    assert cfg.kl_weight(at(1_000_000)) == pytest.approx(6.6)


def test_a_stride_that_cannot_be_doubled_is_refused():
    with pytest.raises(ConfigError, match="power of two"):
        ConvDecoder(8, 3, 14, 4, 1)


def test_the_papers_networks_have_the_papers_sizes():
    with torch.device("meta"):
        from imprint.backbones.dvae_encoder import ConvEncoder

        encoder = ConvEncoder()
        decoder = ConvDecoder(128, 6, 8, 256, 2)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    # openai/DALL-E: 53.8 and 43.8 million, with the 1x1 convolutions to and from 8,192 codes.
    assert count(encoder) + 2048 * 8192 + 8192 == 53_786_240
    assert abs(count(decoder) + 8192 * 128 + 128 - 43_829_766) < 200


def test_the_convolutional_encoder_keeps_the_contract():
    encoder = conv_encoder(4)
    features = encoder(torch.randn(2, 3, 32, 32))
    assert encoder.patch_size == 8 and features.grid == (4, 4) and features.patches_BND.shape == (2, 16, 32)
    torch.testing.assert_close(features.pooled_BD, features.patches_BND.mean(1))
    images = torch.randn(2, 3, 32, 32)
    first, last = encoder.encode_layers(images, [0, -1])
    assert first.grid == (32, 32)
    torch.testing.assert_close(last.patches_BND, encoder(images).patches_BND)
    encoder(images).pooled_BD.sum().backward()
    plain = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    encoder.set_grad_checkpointing()
    encoder(images).pooled_BD.sum().backward()
    for a, p in zip(plain, encoder.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.parametrize("kind", ["safetensors", "timm"])
def test_the_convolutional_encoder_is_exported_with_the_line_that_registers_it(tmp_path, kind):
    from imprint.export.formats import export

    encoder = conv_encoder(3).eval()
    result = export(encoder, format=kind, out=tmp_path / "out")
    assert result.max_abs_diff < 1e-5 and "import imprint.backbones.dvae_encoder" in result.how_to_load
    scope = {}
    exec(result.how_to_load, scope)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(scope["model"](images), encoder(images).pooled_BD)
