import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.distillation import cross_view_cross_entropy
from imprint.losses.patches import centred_targets, patch_cross_entropy
from imprint.losses.streamed import mean_logits, streamed_cross_entropy, streamed_cross_view, streamed_targets


def draw(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def patches(rows=13, width=7, count=50, dtype=torch.float64):
    z, w, tz, tw, c = draw((rows, width), (count, width), (rows, width), (count, width), (count,), dtype=dtype)
    weight = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    return z.requires_grad_(), w.requires_grad_(), tz, tw, c * 0.1, weight


@pytest.mark.parametrize("rows", [1, 4, 13, None])
def test_patches_equal_the_materialised_loss(rows):
    z, w, tz, tw, c, weight = patches()
    whole = patch_cross_entropy(z @ w.T, centred_targets(tz @ tw.T, c, 0.07), weight, 0.1)
    expected = torch.autograd.grad(3 * whole, (z, w))
    loss = streamed_cross_entropy(z, w, streamed_targets(tz, tw, c, 0.07), weight, 0.1, rows=rows)
    found = torch.autograd.grad(3 * loss, (z, w))
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_patches_equal_the_definition_with_targets_at_hand():
    z, w, *_, weight = patches()
    target = torch.softmax(draw((13, 50), seed=5)[0], dim=-1)
    naive = -(weight * (target * F.log_softmax(z @ w.T / 0.1, dim=-1)).sum(-1)).sum()
    expected = torch.autograd.grad(naive, (z, w))
    loss = streamed_cross_entropy(z, w, target.__getitem__, weight, 0.1, rows=5)
    for a, b in zip(torch.autograd.grad(loss, (z, w)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, naive)


def views(dtype=torch.float64):
    z, w, tz, tw, c = draw((5, 6, 7), (40, 7), (2, 6, 7), (40, 7), (40,), dtype=dtype)
    return z.requires_grad_(), w.requires_grad_(), tz, tw, c * 0.1


@pytest.mark.parametrize("images", [1, 4, None])
def test_views_equal_the_materialised_loss(images):
    z, w, tz, tw, c = views()
    whole = cross_view_cross_entropy(z @ w.T, tz @ tw.T, c, 0.1, 0.04)
    expected = torch.autograd.grad(whole, (z, w))
    loss = streamed_cross_view([z[:2], z[2:]], w, tz, tw, c, 0.1, 0.04, images=images)
    for a, b in zip(torch.autograd.grad(loss, (z, w)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_1e4_stay_finite(dtype):
    z, w, tz, tw, c = views(dtype)
    z, tz = (z * 4e3).detach().requires_grad_(), tz * 4e3
    assert (z @ w.T).abs().max() > 1e4
    loss = streamed_cross_view(z, w, tz, tw, c, 0.1, 0.04, images=2)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z.grad.isfinite().all() and w.grad.isfinite().all()
    assert z.grad.dtype == w.grad.dtype == dtype
    m = streamed_cross_entropy(
        z.detach()[0], w, streamed_targets(tz[0], tw, c, 0.04), torch.ones(6, dtype=dtype), 0.1, rows=2
    )
    assert m.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_a_linear_layer(dtype):
    z, w, tz, tw, c = views(torch.float32)
    unit = [F.normalize(x, dim=-1).detach() for x in (z, w, tz, tw)]
    exact_z, exact_w = unit[0].double().requires_grad_(), unit[1].double().requires_grad_()
    streamed_cross_view(exact_z, exact_w, unit[2].double(), unit[3].double(), c.double(), 0.1, 0.04).backward()
    low_z, low_w = unit[0].clone().requires_grad_(), unit[1].clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = streamed_cross_view(low_z, low_w, unit[2], unit[3], c, 0.1, 0.04, images=2)
    loss.backward()
    assert loss.dtype == torch.float32 and low_z.grad.dtype == torch.float32
    for low, exact in ((low_z.grad, exact_z.grad), (low_w.grad, exact_w.grad)):
        error = (low - exact).abs().max() / exact.abs().max()
        assert error < (5e-2 if dtype == torch.bfloat16 else 1e-5), error


def test_only_wanted_gradients_and_no_rows():
    z, w, tz, tw, c, weight = patches()
    made = streamed_targets(tz, tw, c, 0.07)
    streamed_cross_entropy(z.detach(), w, made, weight, 0.1).backward()
    assert z.grad is None and w.grad is not None
    frozen = streamed_cross_entropy(z, w.detach(), made, weight, 0.1)
    frozen.backward()
    torch.testing.assert_close(streamed_cross_entropy(z.detach(), w.detach(), made, weight, 0.1), frozen.detach())
    empty = streamed_cross_entropy(z[:0], w, streamed_targets(tz[:0], tw, c, 0.07), weight[:0], 0.1)
    empty.backward()
    assert empty.item() == 0


def test_backward_runs_once():
    z, w, tz, tw, c = views()
    loss = streamed_cross_view(z, w, tz, tw, c, 0.1, 0.04)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="hands them over once"):
        loss.backward()


def test_the_largest_tensor_is_a_part():
    """With K prototypes and M rows no tensor of M x K is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    z, w, tz, tw, c, weight = patches(rows=200, count=500)
    with Watch():
        streamed_cross_entropy(z, w, streamed_targets(tz, tw, c, 0.07), weight, 0.1, rows=10).backward()
    assert largest <= 2 * 10 * 500  # logits and probabilities of the rows in work


def test_mean_logits_are_the_mean_of_logits():
    z, w = draw((2, 5, 7), (9, 7))
    torch.testing.assert_close(mean_logits(z, w)[0], (z @ w.T).flatten(0, 1).mean(0))


def test_misfits_are_named():
    z, w, tz, tw, c = views()
    with pytest.raises(ConfigError, match="V >= W"):
        streamed_cross_view(z[:1], w, tz, tw, c, 0.1, 0.04)
    with pytest.raises(ConfigError, match="positive"):
        streamed_cross_view(z, w, tz, tw, c, 0.0, 0.04)
    with pytest.raises(ConfigError, match="no pair"):
        streamed_cross_view(z[:1], w, tz[:1], tw, c, 0.1, 0.04)
    with pytest.raises(ConfigError, match=r"\(M, D\)"):
        streamed_cross_entropy(z[0], w[:, :3], streamed_targets(tz[0], tw, c, 0.04), torch.ones(6), 0.1)


def test_dino_takes_the_same_step_streamed():
    import dataclasses

    from imprint.backbones.build import build_encoder
    from imprint.core.progress import Progress
    from imprint.data.batch import Batch
    from imprint.methods.dino import DINO
    from imprint.recipes.book import recipe

    config = recipe("dino/debug")
    views = {"global": torch.randn(2, 6, 3, 32, 32), "local": torch.randn(2, 6, 3, 16, 16)}
    batch = Batch(views=views, index_B=torch.arange(6))
    results = []
    for stream in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder(config.encoder.name, image_size=32, patch_size=8, arch=config.encoder.arch)
        method = DINO(dataclasses.replace(config.method, stream_prototypes=stream, train_gain=True), encoder).double()
        with torch.no_grad():
            for gain in (method.student.head.prototypes.gain, method.teacher.head.prototypes.gain):
                gain.uniform_(0.5, 1.5)
        torch.manual_seed(1)
        out = method(batch.map(lambda x: x.double() if x.is_floating_point() else x), Progress(1, 10, 5))
        out.loss.backward()
        grads = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
        results.append((out.loss, grads, method.center.value))
    plain, streamed = results
    torch.testing.assert_close(plain[0], streamed[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(plain[2], streamed[2])
    assert plain[1].keys() == streamed[1].keys() and any("gain" in n for n in plain[1])
    for name, grad in plain[1].items():
        torch.testing.assert_close(streamed[1][name], grad, rtol=1e-7, atol=1e-10)
