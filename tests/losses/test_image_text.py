"""CLIP's and SigLIP's losses against the whole matrix, closed forms, and parts of a batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses import image_text
from imprint.losses.image_text import clip_loss, matched, sigmoid_loss, similarities


def pairs(rows=24, width=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator, dtype=dtype).mul_(3).requires_grad_() for _ in range(2)]


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def naive_clip(image, text, log_scale, smoothing=0.0):
    logits = log_scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    own = torch.arange(len(image))
    both = [F.cross_entropy(side, own, label_smoothing=smoothing) for side in (logits, logits.T)]
    return sum(both) / 2


def naive_sigmoid(image, text, log_scale, bias):
    """The double loop of Alg. 1."""
    x, y = F.normalize(image, dim=1), F.normalize(text, dim=1)
    total = 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            z = 1.0 if i == j else -1.0
            total = total - F.logsigmoid(z * (log_scale.exp() * (x[i] @ y[j]) + bias))
    return total / len(x)


def compare(ours, naive, leaves):
    grads = torch.autograd.grad(ours, leaves)
    torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(grads, torch.autograd.grad(naive, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.fixture(params=[False, True], ids=["whole", "in parts"])
def _small_parts(request, monkeypatch):
    """Make parts of five rows, the last one shorter, so that the streaming is seen at all."""
    if request.param:

        def parts(scaled, keys):
            for start in range(0, len(scaled), 5):
                i = slice(start, min(start + 5, len(scaled)))
                yield i, scaled[i] @ keys.t()

        monkeypatch.setattr(image_text, "_parts", parts)


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("log_scale", [math.log(1 / 0.07), math.log(700.0)], ids=["plain sums", "shifted sums"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clip_is_the_symmetric_cross_entropy(log_scale, smoothing):
    image, text = pairs()
    scale = number(log_scale)
    ours = clip_loss(image, text, scale, label_smoothing=smoothing)
    compare(ours, naive_clip(image, text, scale, smoothing), [image, text, scale])


@pytest.mark.usefixtures("_small_parts")
def test_sigmoid_is_the_double_loop():
    image, text = pairs(rows=11)
    scale, bias = number(math.log(10.0)), number(-10.0)
    compare(sigmoid_loss(image, text, scale, bias), naive_sigmoid(image, text, scale, bias), [image, text, scale, bias])


def test_closed_forms():
    same = torch.ones(16, 4)
    assert clip_loss(same, same, torch.tensor(2.0)).item() == pytest.approx(math.log(16), rel=1e-6)
    eye = torch.eye(16)
    # Every cosine 0 but those of pairs, 1.
    s = math.exp(2.0)
    assert clip_loss(eye, eye, torch.tensor(2.0)).item() == pytest.approx(math.log(math.exp(s) + 15) - s, rel=1e-4)
    zero = torch.zeros(())
    expected = 15 * math.log(2) + math.log1p(math.exp(-1.0))
    assert sigmoid_loss(eye, eye, zero, zero).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_halves_with_gathered_vectors_are_the_whole_batch(smoothing):
    image, text = pairs()
    scale, bias = number(1.5), number(-3.0)
    for whole, part in (
        (
            clip_loss(image, text, scale, label_smoothing=smoothing),
            lambda own, at: clip_loss(
                image[own], text[own], scale, image_all=image, text_all=text, offset=at, label_smoothing=smoothing
            ),
        ),
        (
            sigmoid_loss(image, text, scale, bias),
            lambda own, at: sigmoid_loss(image[own], text[own], scale, bias, text_all=text, offset=at),
        ),
    ):
        halves = (part(slice(0, 12), 0) + part(slice(12, 24), 12)) / 2
        compare(halves, whole, [image, text, scale])


def test_gathered_vectors_of_one_process_are_its_own():
    image, text = pairs()
    scale = number(1.0)
    alone = clip_loss(image, text, scale)
    assert torch.equal(alone, clip_loss(image, text, scale, image_all=image, text_all=text))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_and_extreme_scales_stay_finite(dtype):
    image, text = (x.detach().to(dtype).requires_grad_() for x in pairs())
    for log_scale in (math.log(100.0), math.log(1e4)):
        scale, bias = number(log_scale, torch.float32), number(-10.0, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            losses = clip_loss(image, text, scale), sigmoid_loss(image, text, scale, bias)
        for loss in losses:
            assert loss.dtype == torch.float32 and loss.isfinite()
            assert all(g.isfinite().all() for g in torch.autograd.grad(loss, [image, text, scale]))
        exact = naive_clip(image.detach().double(), text.detach().double(), scale.detach().double())
        assert losses[0].item() == pytest.approx(exact.item(), rel=1e-4)


def test_a_zero_vector_takes_no_gradient():
    image, text = pairs()
    with torch.no_grad():
        image[3] = 0
    scale, bias = number(1.0), number(0.0)
    for loss in (clip_loss(image, text, scale), sigmoid_loss(image, text, scale, bias)):
        grad, _ = torch.autograd.grad(loss, [image, text])
        assert loss.isfinite() and grad.isfinite().all() and not grad[3].any() and grad[2].any()


def test_nothing_of_the_size_of_all_pairs_is_allocated(monkeypatch):
    """Memory is linear: with 4,000 pairs the largest tensor is the part, 2^20 numbers, and not 16 million."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes())
            return out

    image, text = pairs(rows=4000, width=4, dtype=torch.float32)
    scale, bias = number(4.5, torch.float32), number(-10.0, torch.float32)
    with Watch():
        (clip_loss(image, text, scale) + sigmoid_loss(image, text, scale, bias)).backward()
    assert largest <= 4 * 2**20 < 4 * 4000**2 / 8


def test_similarities_and_matches():
    image, text = pairs()
    scores = similarities(image, text, torch.tensor(1.0), torch.tensor(-2.0))
    expected = math.e * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T - 2
    torch.testing.assert_close(scores, expected)
    eye = torch.eye(6)
    assert matched(eye, eye).item() == 1.0
    assert matched(eye[2:4], eye, offset=2).item() == 1.0
    assert matched(eye, eye.roll(1, 0)).item() == 0.0


def test_what_does_not_fit_is_refused():
    image, text = (x.detach() for x in pairs())
    scale = torch.zeros(())
    with pytest.raises(ConfigError, match="equal non-empty"):
        clip_loss(image, text[:3], scale)
    with pytest.raises(ConfigError, match="both image_all and text_all"):
        clip_loss(image, text, scale, text_all=text)
    with pytest.raises(ConfigError, match="do not lie in"):
        sigmoid_loss(image[:4], text[:4], scale, scale, text_all=text, offset=21)
    with pytest.raises(ConfigError, match="label_smoothing"):
        clip_loss(image, text, scale, label_smoothing=1.0)
    with pytest.raises(ConfigError, match="must be one number"):
        clip_loss(image, text, torch.zeros(2))
