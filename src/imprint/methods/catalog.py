"""THE table of methods. One row is all that names a method anywhere; nothing is registered by import side effects."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imprint.core.errors import unknown

if TYPE_CHECKING:
    from imprint.methods.base import Method


@dataclass(frozen=True)
class Row:
    """One method: its name, class, family, paper and figure.

    Attributes:
        name: catalogue name; the module is `imprint.methods.<name>`, the recipes `imprint.recipes.<name>`.
        cls: class name in that module.
        family: group in tables.
        title: the paper's name for it.
        arxiv: arXiv number.
        year: of first publication.
        parity: numeric cases in tests/parity that it must reproduce.
        figure: the paper's figure that a paper recipe aims at.
        takes: what it learns from: images, images with captions, or text.
    """

    name: str
    cls: str
    family: str
    title: str
    arxiv: str
    year: int
    parity: tuple[str, ...]
    figure: str
    takes: Literal["images", "pairs", "text"] = "images"


CATALOG: tuple[Row, ...] = (
    Row(
        "simclr", "SimCLR", "contrastive", "SimCLR", "2002.05709", 2020, ("nt_xent", "lars"),
        "ImageNet-1k linear, R50 1000 ep: 69.3",
    ),
    Row(
        "simclr_v2", "SimCLRv2", "contrastive", "SimCLR v2", "2006.10029", 2020, ("nt_xent", "distillation"),
        "ImageNet-1k R50: 1 % labels 57.9, 10 % 68.4; distilled 73.9 and 77.5",
    ),
    Row(
        "moco_v1", "MoCoV1", "contrastive", "MoCo", "1911.05722", 2019, ("info_nce_queue",),
        "ImageNet-1k linear, R50 200 ep: 60.6",
    ),
    Row(
        "moco_v2", "MoCoV2", "contrastive", "MoCo v2", "2003.04297", 2020, ("info_nce_queue",),
        "ImageNet-1k linear, R50: 67.5 (200 ep), 71.1 (800 ep)",
    ),
    Row(
        "moco_v3", "MoCoV3", "contrastive", "MoCo v3", "2104.02057", 2021, ("mocov3", "lars", "sincos_2d"),
        "ImageNet-1k linear: ViT-S 73.2, ViT-B 76.7, R50 1000 ep 74.6",
    ),
    Row(
        "supcon", "SupCon", "contrastive", "SupCon", "2004.11362", 2020, ("supcon",),
        "ImageNet-1k classifier on the frozen R50: 78.7",
    ),
    Row(
        "nnclr", "NNCLR", "contrastive", "NNCLR", "2104.14548", 2021, (),
        "ImageNet-1k linear, R50 1000 ep: 75.6 (with multi-crop), 75.4 without",
    ),
    Row(
        "byol", "BYOL", "self-distillation", "BYOL", "2006.07733", 2020, ("byol", "lars", "schedules"),
        "ImageNet-1k linear, R50 1000 ep: 74.3",
    ),
    Row(
        "simsiam", "SimSiam", "self-distillation", "SimSiam", "2011.10566", 2020, ("simsiam",),
        "ImageNet-1k linear, R50: 68.1/70.0/71.3 (100/200/800 ep)",
    ),
    Row(
        "swav", "SwAV", "clustering", "SwAV", "2006.09882", 2020, ("swav", "lars"),
        "ImageNet-1k linear, R50: 72.0 (200 ep, B 256), 75.3 (800 ep)",
    ),
    Row(
        "seer", "SEER", "clustering", "SEER", "2103.01988", 2021, ("swav", "lars"),
        "ImageNet-1k fine-tuned, RegNetY-256GF: 84.2",
    ),
    Row(
        "w_mse", "WMSE", "redundancy reduction", "W-MSE", "2007.06346", 2020, ("w_mse",),
        "CIFAR-10 linear, R18 1000 ep: 91.55 (d=2), 91.99 (d=4)",
    ),
    Row(
        "barlow_twins", "BarlowTwins", "redundancy reduction", "Barlow Twins", "2103.03230", 2021,
        ("barlow_twins", "lars", "schedules"), "ImageNet-1k linear, R50 1000 ep: 73.2",
    ),
    Row(
        "vicreg", "VICReg", "redundancy reduction", "VICReg", "2105.04906", 2021, ("vicreg", "lars"),
        "ImageNet-1k linear, R50 1000 ep: 73.2",
    ),
    Row(
        "dino", "DINO", "self-distillation", "DINO", "2104.14294", 2021, ("dino", "schedules"),
        "ImageNet-1k ViT-S/16: kNN 74.5, linear 77.0",
    ),
    Row(
        "mae", "MAE", "masked image modelling", "MAE", "2111.06377", 2021, ("mae", "sincos_2d"),
        "ImageNet-1k ViT-B: fine-tuned 83.6, linear 68.0",
    ),
    Row(
        "esvit", "EsViT", "self-distillation", "EsViT", "2106.09785", 2021, ("esvit",),
        "ImageNet-1k Swin-T: kNN 75.7, linear 78.0; Swin-B/14: 79.3, 81.3",
    ),
    Row(
        "ibot", "IBOT", "self-distillation", "iBOT", "2111.07832", 2021, ("ibot", "maskgen_ibot"),
        "ImageNet-1k ViT-S: kNN 75.2, linear 77.9; ViT-B: 77.1, 79.5",
    ),
    Row(
        "dinov2", "DINOv2", "self-distillation", "DINOv2", "2304.07193", 2023,
        ("dinov2_dino_loss", "dinov2_ibot_loss", "dinov2_sinkhorn", "koleo", "maskgen_dinov2"),
        "ImageNet-1k S/B/L/g: kNN 79.0/82.1/83.5/83.5, linear 81.1/84.5/86.3/86.5",
    ),
    Row(
        "gram", "Gram", "self-distillation", "DINOv3 Gram anchoring", "2508.10104", 2025, ("dinov3_gram",),
        "dense features of a long run recover (Sec. 4); no figure for a small one",
    ),
    Row(
        "msn", "MSN", "self-distillation", "MSN", "2204.07141", 2022, ("msn", "schedules"),
        "ImageNet-1k ViT-S/16: linear 76.9, 1 % labels 67.2",
    ),
    Row(
        "ijepa", "IJEPA", "joint-embedding prediction", "I-JEPA", "2301.08243", 2023,
        ("ijepa", "sincos_2d", "schedules"), "ImageNet-1k linear: ViT-B/16 72.9, L/16 77.5, H/14 79.3",
    ),
    Row(
        "data2vec", "Data2Vec", "joint-embedding prediction", "data2vec", "2202.03555", 2022, ("data2vec",),
        "ImageNet-1k fine-tuned: ViT-B 84.2, L 86.6",
    ),
    Row(
        "lejepa", "LeJEPA", "joint-embedding prediction", "LeJEPA", "2511.08544", 2025, (),
        "ImageNet-1k linear, ViT-H/14: 79",
    ),
    Row(
        "capi", "CAPI", "joint-embedding prediction", "CAPI", "2502.08769", 2025, ("capi",),
        "ImageNet-1k attentive probe, ViT-L/14: 83.8",
    ),
    Row(
        "dvae", "DVAE", "masked image modelling", "discrete VAE", "2102.12092", 2021, (),
        "a tokenizer for BEiT: no figure of its own",
    ),
    Row(
        "beit", "BEiT", "masked image modelling", "BEiT", "2106.08254", 2021, ("maskgen_beit",),
        "ImageNet-1k fine-tuned, ViT-B: 83.2",
    ),
    Row(
        "simmim", "SimMIM", "masked image modelling", "SimMIM", "2111.09886", 2021, ("simmim", "maskgen_simmim"),
        "ImageNet-1k fine-tuned: ViT-B 83.8, Swin-B 84.0",
    ),
    Row(
        "maskfeat", "MaskFeat", "masked image modelling", "MaskFeat", "2112.09133", 2021, ("maskfeat_hog",),
        "ImageNet-1k fine-tuned: ViT-B 84.0, L 85.7 (1600 ep)",
    ),
    Row(
        "splitmask", "SplitMask", "masked image modelling", "SplitMask", "2112.10740", 2021, (),
        "pretraining on the target set alone: ViT-S/B, fine-tuned",
    ),
    Row(
        "cae", "CAE", "masked image modelling", "CAE", "2202.03026", 2022, (),
        "ImageNet-1k ViT-B 1600 ep: fine-tuned 83.9, linear 70.4",
    ),
    Row(
        "igpt", "IGPT", "masked image modelling", "iGPT", "Chen 2020", 2020, (),
        "CIFAR-10 linear probe, iGPT-L: 96.3",
    ),
    Row(
        "rotation", "Rotation", "pretext", "RotNet", "1803.07728", 2018, (),
        "ImageNet-1k linear, R50 (as re-run by the papers that compare): 48.2",
    ),
    Row(
        "jigsaw", "Jigsaw", "pretext", "Jigsaw puzzles", "1603.09246", 2016, (),
        "ImageNet-1k linear, R50, 2,000 permutations: 46.6",
    ),
    Row(
        "colorization", "Colorization", "pretext", "Colorful image colorization", "1603.08511", 2016, (),
        "ImageNet-1k linear, R50 (as re-run): 40.1",
    ),
    Row(
        "context_encoder", "ContextEncoder", "generative", "Context encoders", "1604.07379", 2016, (),
        "PASCAL VOC 2007 classification, AlexNet: 56.5",
    ),
    Row(
        "aae", "AAE", "generative", "Adversarial autoencoder", "1511.05644", 2015, (),
        "MNIST, aggregated posterior equal to the prior",
    ),
    Row(
        "frame_order", "FrameOrder", "video", "Shuffle and learn", "1603.08561", 2016, (),
        "UCF101 action recognition: 50.2",
    ),
    Row(
        "random_walk", "RandomWalk", "video", "Contrastive random walk", "2006.14613", 2020, (),
        "DAVIS 2017 J&F: 67.6",
    ),
    Row(
        "next_frame", "NextFrame", "video", "Next-frame prediction", "1511.05440", 2015, (),
        "UCF101 sharpness and PSNR of the predicted frame",
    ),
    Row(
        "rcdm", "RCDM", "generative", "RCDM", "2112.09164", 2021, (),
        "samples that keep what the representation knows",
    ),
    Row(
        "distill", "Distillation", "teachers", "Knowledge distillation", "1503.02531", 2015, ("distillation",),
        "MNIST test errors: teacher 67, small net alone 146, distilled 74",
    ),
    Row(
        "deit", "DeiT", "teachers", "DeiT", "2012.12877", 2020, ("distillation",),
        "ImageNet-1k: DeiT-B distilled 83.4 (300 ep), 81.8 without a teacher",
    ),
    Row(
        "noisy_student", "NoisyStudent", "teachers", "Noisy Student", "1911.04252", 2019, ("distillation",),
        "ImageNet-1k: EfficientNet-L2 88.4 with JFT",
    ),
    Row(
        "clip", "CLIP", "image-text", "CLIP", "2103.00020", 2021, ("clip",),
        "ImageNet-1k zero-shot: R50 59.6, ViT-L/14@336 76.2", "pairs",
    ),
    Row(
        "siglip", "SigLIP", "image-text", "SigLIP", "2303.15343", 2023, (),
        "ImageNet-1k zero-shot, ViT-B/16, batch 32k: 73.4", "pairs",
    ),
    Row(
        "bert", "BERT", "language", "BERT", "1810.04805", 2018, (),
        "GLUE test: base 79.6, large 82.1", "text",
    ),
    Row(
        "roberta", "RoBERTa", "language", "RoBERTa", "1907.11692", 2019, (),
        "GLUE dev, large: MNLI 90.2, SST-2 96.4", "text",
    ),
    Row(
        "albert", "ALBERT", "language", "ALBERT", "1909.11942", 2019, (),
        "GLUE dev, xxlarge: MNLI 90.8, SST-2 96.9", "text",
    ),
    Row(
        "gpt", "GPT", "language", "GPT", "Radford 2018", 2018, (),
        "GLUE test: 72.8; GPT-3 (2005.14165): few-shot LAMBADA 86.4", "text",
    ),
)  # fmt: skip


def names() -> tuple[str, ...]:
    """Return all catalogue names."""
    return tuple(row.name for row in CATALOG)


def row(name: str) -> Row:
    """Return the row of a method.

    Raises:
        ConfigError: for an unknown name, naming the nearest known one.
    """
    for candidate in CATALOG:
        if candidate.name == name:
            return candidate
    raise unknown("method", name, names())


def method_class(name: str) -> type[Method]:
    """Import and return the class of a method."""
    entry = row(name)
    cls: type[Method] = getattr(importlib.import_module(f"imprint.methods.{name}"), entry.cls)
    return cls
