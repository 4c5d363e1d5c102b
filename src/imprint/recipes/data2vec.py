"""Recipes of data2vec on images and text (arXiv 2202.03555)."""

from __future__ import annotations

import dataclasses

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant, cosine
from imprint.data.texts import TextConfig
from imprint.methods.data2vec import Data2VecConfig
from imprint.recipes import scale
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_one_layer", "paper_text", "paper_vit_large", "small", "text_small"]

_CODE = "arXiv 2202.03555, Sec. 4.1; facebookresearch/data2vec_vision, beit/README.md"
_DEVIATIONS = "no dropout of attention weights (public code: 0.05 for ViT-B, 0.15 for ViT-L)."


def paper(image_size: int = 224) -> RunConfig:
    """ViT-B/16 with shared relative positions, 800 epochs at batch 2048, as in the paper."""
    return RunConfig(
        name="data2vec",
        method=Data2VecConfig(),
        encoder=EncoderConfig(
            name="beit_base_patch16_224",
            image_size=image_size,
            drop_path=0.25,
            arch=Arch(layer_scale=1e-4, relative_positions="shared", absolute_positions=False),
        ),
        optim=_adamw(LR(base=2e-3, per=2048, floor=1e-5, warmup=Epochs(10), warmup_from=5e-4)),
        batch_size=2048,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(source=_CODE, expected="ImageNet-1k fine-tuned 84.2 %", deviations=_DEVIATIONS),
    )


def paper_one_layer(image_size: int = 224) -> RunConfig:
    """The ablation of averaging: targets are the last block's output alone (Sec. 5.1, Fig. 2)."""
    base = paper(image_size)
    return dataclasses.replace(
        base,
        method=Data2VecConfig(top_layers=1),
        provenance=Provenance(source="arXiv 2202.03555, Sec. 5.1, Fig. 2", expected="below the average of several"),
    )


def paper_vit_large(image_size: int = 224) -> tuple[RunConfig, ...]:
    """ViT-L/16, two runs of 800 epochs at batch 4096, the second with a slower teacher."""
    base = paper(image_size)
    first = dataclasses.replace(
        base,
        stage="first",
        encoder=dataclasses.replace(
            base.encoder,
            name="beit_large_patch16_224",
            drop_path=0.2,
            arch=Arch(layer_scale=1e-5, relative_positions="shared", absolute_positions=False),
        ),
        optim=_adamw(LR(base=1e-3, per=4096, floor=1e-5, warmup=Epochs(80), warmup_from=1e-3)),
        batch_size=4096,
        share=0.5,
        provenance=Provenance(source=_CODE, expected="ImageNet-1k fine-tuned 86.2 %", deviations=_DEVIATIONS),
    )
    second = dataclasses.replace(
        first,
        stage="slower",
        start="../stage-1",
        method=Data2VecConfig(momentum=constant(0.9999)),
        optim=_adamw(LR(base=1e-3, per=4096, floor=1e-5, warmup=Epochs(40), warmup_from=1e-3)),
        provenance=Provenance(
            source=_CODE,
            expected="ImageNet-1k fine-tuned 86.6 %",
            deviations=f"the teacher goes on too, where the public code starts it anew from the student; {_DEVIATIONS}",
        ),
    )
    return first, second


def small(image_size: int = 96) -> RunConfig:
    """A narrow ViT with small patches and a fast teacher, batch 64: one GPU or a CPU, 1k to 50k images."""
    patch = scale.patch(image_size)
    grid = (image_size // patch) ** 2
    return RunConfig(
        name="data2vec",
        method=Data2VecConfig(
            top_layers=3, momentum=cosine(0.99, 1.0), min_block=max(1, min(16, grid // 8)), export="teacher"
        ),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=image_size, patch_size=patch, positions="sincos"),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=64, rule="sqrt", warmup=Steps(100)),
            weight_decay=constant(0.05),
            clip=3.0,
        ),
        batch_size=64,
        length=Epochs(400),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2202.03555, scaled down",
            expected="docs/results.md",
            deviations="a faster teacher, which is exported, fewer layers averaged, fixed positions, smaller blocks "
            "and a higher rate, for short runs of a small model.",
        ),
    )


def paper_text(image_size: int = 32) -> RunConfig:
    """A BERT-base network on rows of 512 tokens, a million steps at batch 256 (Sec. 4.3)."""
    return RunConfig(
        name="data2vec",
        method=Data2VecConfig(
            modality="text",
            top_layers=10,
            beta=4.0,
            post_norm=False,
            momentum=cosine(0.9999, 0.9999, warmup=Steps(300_000), warmup_from=0.999),
        ),
        encoder=EncoderConfig(name="text:bert", image_size=image_size),
        data=DataConfig(text=TextConfig(vocabulary=50_000)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=2e-4, rule="none", warmup=Steps(10_000)),
            weight_decay=constant(0.01),
            betas=(0.9, 0.98),
            eps=1e-6,
            clip=5.0,
        ),
        batch_size=256,
        length=Steps(1_000_000),
        checkpoint_every=Steps(1_000),
        provenance=Provenance(
            source="arXiv 2202.03555, Sec. 4.3; fairseq, examples/data2vec/config/text/pretraining/base.yaml",
            expected="GLUE dev 82.7 after fine-tuning (Table 3)",
            deviations="tokens are hidden as in the paper's main result (15 %, singly), not in runs of four as in the "
            "file; documents are cut at 512 tokens, not at sentences; weight decay is decoupled.",
        ),
    )


def text_small(image_size: int = 32) -> RunConfig:
    """Three layers of width 192 over rows of 64 tokens: a CPU or one GPU, 1 to 10 MB of text."""
    return RunConfig(
        name="data2vec",
        method=Data2VecConfig(
            modality="text", top_layers=2, beta=4.0, post_norm=False, momentum=constant(0.999), length=64, rows="packed"
        ),
        encoder=EncoderConfig(
            name="text:bert", image_size=image_size, arch=Arch(embed_dim=192, depth=3, num_heads=3, dropout=0.1)
        ),
        data=DataConfig(text=TextConfig(vocabulary=3_000)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=5e-4, rule="none", warmup=Steps(100)),
            weight_decay=constant(0.01),
            betas=(0.9, 0.98),
            clip=5.0,
        ),
        batch_size=32,
        length=Epochs(20),
        provenance=Provenance(
            source="arXiv 2202.03555, Sec. 4.3, scaled down",
            expected="no figure: the loss falls and targets keep their spread",
            deviations="a small network and vocabulary, short rows across documents and a larger rate.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="data2vec",
        method=Data2VecConfig(top_layers=2, min_block=2, momentum=constant(0.99)),
        encoder=scale.tiny_vit(image_size),
        optim=_adamw(LR(base=1e-3, warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(lr: LR) -> OptimConfig:
    return OptimConfig(name="adamw", lr=lr, weight_decay=constant(0.05), clip=3.0)
