"""CLIP: the symmetric cross entropy with its learnable scale."""

from __future__ import annotations

from collections.abc import Callable

from case import Case, Out, arrays, tensor

from imprint.losses.image_text import clip_loss, similarities


def clip_case(case: Case) -> Out:
    """Loss, similarities and gradients; the case's `logit_scale` is the logarithm that is learned."""
    images, texts = tensor(case["image_features"], True), tensor(case["text_features"], True)
    log_scale = tensor(case["logit_scale"], True)
    loss = clip_loss(images, texts, log_scale)
    loss.backward()
    return arrays(
        {
            "out_loss": loss,
            "out_logits_per_image": similarities(images, texts, log_scale),
            "grad_image_features": images.grad,
            "grad_text_features": texts.grad,
            "grad_logit_scale": log_scale.grad,
        }
    )


CASES: dict[str, Callable[[Case], Out]] = {"clip": clip_case}

LOSSES: dict[str, tuple[str, ...]] = {"clip": ("image_features", "text_features")}
