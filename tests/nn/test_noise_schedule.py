import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.nn.noise_schedule import NoiseSchedule, betas_of, between

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def diffusers_schedule(kind, cls="DDPMScheduler", **settings):
    from imprint.backbones import torchvision_compat  # noqa: F401  (makes diffusers importable)

    module = pytest.importorskip("diffusers")
    return getattr(module, cls)(num_train_timesteps=1000, beta_schedule=KINDS[kind], **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_is_that_of_diffusers(kind):
    theirs = diffusers_schedule(kind)
    torch.testing.assert_close(betas_of(kind, 1000).float(), theirs.betas, rtol=1e-4, atol=1e-8)
    ours = NoiseSchedule(kind)
    torch.testing.assert_close(ours.kept_T, theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)
    x, noise, level = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 990])
    torch.testing.assert_close(ours.noised(x, level, noise), theirs.add_noise(x, noise, level), rtol=1e-3, atol=1e-4)


def test_fewer_levels_end_in_noise_too():
    for kind in KINDS:
        assert NoiseSchedule(kind, 50).kept_T[-1] < 1e-4
        assert (betas_of(kind, 50) < 1).all()


def test_noised_images_have_the_moments_of_the_equation():
    schedule = NoiseSchedule("linear")
    x = torch.full((20_000, 1, 1, 1), 0.7)
    level = torch.full((20_000,), 300)
    noised = schedule.noised(x, level, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    kept = float(torch.prod(1 - betas_of("linear", 1000)[:301]))
    assert float(noised.mean()) == pytest.approx(0.7 * kept**0.5, abs=0.02)
    assert float(noised.var()) == pytest.approx(1 - kept, abs=0.02)


def test_clean_undoes_noised():
    schedule = NoiseSchedule("cosine")
    x, noise, level = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0, 400, 900])
    torch.testing.assert_close(schedule.clean(schedule.noised(x, level, noise), level, noise), x, rtol=1e-3, atol=1e-3)


def test_velocity_and_noise_say_the_same():
    schedule = NoiseSchedule("cosine")
    x, noise, level = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0, 400, 999])
    noised, velocity = schedule.noised(x, level, noise), schedule.velocity(x, level, noise)
    torch.testing.assert_close(schedule.noise_of(velocity, noised, level), noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_with_the_true_noise_recovers_the_image(steps):
    schedule = NoiseSchedule("linear")
    x0 = torch.rand(2, 3, 8, 8) * 2 - 1
    first = torch.randn(2, 3, 8, 8)
    start = schedule.noised(x0, torch.full((2,), 999), first)

    def truth(x, level):
        kept, lost = schedule.kept_T[level][:, None, None, None], schedule.lost_T[level][:, None, None, None]
        return (x - kept.sqrt() * x0) / lost.sqrt(), None

    torch.testing.assert_close(schedule.sample(truth, start, steps), x0, rtol=1e-3, atol=2e-3)


def test_walks_are_those_of_diffusers():
    """The same guesses of the noise lead to the same images, deterministic and with the same fresh noise."""
    ours = NoiseSchedule("linear")
    start = torch.randn(2, 3, 4, 4)
    draws = torch.randn(5, 2, 3, 4, 4)
    levels = ours.spaced(5)
    assert levels == [999, 749, 500, 250, 0]

    def guess(x, level):
        return torch.tanh(x * 0.3 + level[:, None, None, None] / 1000), None

    ddim = diffusers_schedule("linear", "DDIMScheduler", clip_sample=True, set_alpha_to_one=True)
    kept = [*ddim.alphas_cumprod[levels].tolist(), 1.0]
    x = start
    for i, level in enumerate(levels):
        noise, _ = guess(x, torch.full((2,), level))
        found = ((x - (1 - kept[i]) ** 0.5 * noise) / kept[i] ** 0.5).clamp(-1, 1)
        noise = (x - kept[i] ** 0.5 * found) / (1 - kept[i]) ** 0.5
        x = kept[i + 1] ** 0.5 * found + (1 - kept[i + 1]) ** 0.5 * noise
    torch.testing.assert_close(ours.sample(guess, start, 5), x, rtol=1e-3, atol=1e-4)

    ddpm = diffusers_schedule("linear", clip_sample=True, variance_type="fixed_small", timestep_spacing="linspace")
    ddpm.set_timesteps(1000)
    x = mine = start
    for level in (999, 500, 3):
        fresh = draws[0]
        noise, _ = guess(x, torch.full((2,), level))
        mean_clean = ((x - (1 - ddpm.alphas_cumprod[level]) ** 0.5 * noise) / ddpm.alphas_cumprod[level] ** 0.5).clamp(
            -1, 1
        )
        generator = torch.Generator().manual_seed(level)
        theirs = ddpm.step(noise, level, x, generator=generator).prev_sample
        fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(level))
        of_clean, of_noised, variance, _ = ours.step_back(level, level - 1)
        mine = of_clean * mean_clean + of_noised * x + variance**0.5 * fresh
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
        x = mine


def test_ancestral_steps_draw_and_learned_variances_lie_between_the_bounds():
    schedule = NoiseSchedule("linear")
    start = torch.zeros(400, 1, 8, 8)
    seen: dict[float, float] = {}
    for chosen in (-1.0, 1.0):

        def guess(x, level, chosen=chosen):
            return torch.zeros_like(x), torch.full_like(x, chosen)

        generator = torch.Generator().manual_seed(0)
        calls = []

        def fresh(step, generator=generator, calls=calls):
            calls.append(step)
            return torch.randn(start.shape, generator=generator) if step == 0 else torch.zeros_like(start)

        x = schedule.sample(guess, start, 2, fresh=fresh, clip=None)
        assert calls == [0]
        seen[chosen] = float((x * schedule.kept_T[0].sqrt()).var())
    _, _, variance, beta = schedule.step_back(999, 0)
    assert seen[-1.0] == pytest.approx(variance, rel=0.02) and seen[1.0] == pytest.approx(beta, rel=0.02)
    torch.testing.assert_close(between(torch.zeros(()), torch.tensor(-4.0), torch.tensor(-2.0)), torch.tensor(-3.0))


def test_sizes_that_do_not_work_are_refused():
    with pytest.raises(ConfigError, match="1,000"):
        NoiseSchedule("linear", 10)
    with pytest.raises(ConfigError, match="sampling steps"):
        NoiseSchedule("linear").spaced(1001)
    with pytest.raises(ConfigError, match="noise schedule"):
        betas_of("sigmoid", 1000)
