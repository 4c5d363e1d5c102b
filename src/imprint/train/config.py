"""The typed, frozen configuration of a run. Derived values are properties; nothing is mutated after construction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from imprint.backbones.arch import Arch
from imprint.core.errors import ConfigError
from imprint.core.progress import Duration, Epochs, Steps
from imprint.core.schedules import Schedule, constant
from imprint.data.labelled import Labelled
from imprint.data.texts import TextConfig
from imprint.methods.base import MethodConfig


@dataclass(frozen=True, kw_only=True)
class LR:
    """A learning rate with its batch-size rule and schedule.

    Peak = base * batch / per (linear), base * sqrt(batch / per) (sqrt) or base (none).

    Attributes:
        base: rate at batch size `per`.
        per: reference batch size.
        rule: batch-size scaling.
        end: final rate as a share of the peak.
        floor: final rate as an absolute value (DINO's 1e-6); the larger of the two ends counts.
        warmup: length of the linear warm-up.
        warmup_from: first rate as a share of the peak.
        warmup_reaches_peak: see Schedule.warmup_reaches_start.
        shape: see Schedule.
        milestones: see Schedule.
        gamma: see Schedule.
        stretch: see Schedule.
        counted_from: see Schedule.
    """

    base: float
    per: int = 256
    rule: Literal["linear", "sqrt", "none"] = "linear"
    end: float = 0.0
    floor: float = 0.0
    warmup: Duration = Steps(0)
    warmup_from: float = 0.0
    warmup_reaches_peak: bool = False
    shape: Literal["cosine", "linear", "constant", "milestones"] = "cosine"
    milestones: tuple[Duration, ...] = ()
    gamma: float = 0.1
    stretch: float = 1.0
    counted_from: int = 0

    def peak(self, batch_size: int) -> float:
        """Return the rate after warm-up for a global batch size."""
        factor = {"linear": batch_size / self.per, "sqrt": math.sqrt(batch_size / self.per), "none": 1.0}[self.rule]
        return self.base * factor

    def schedule(self, batch_size: int) -> Schedule:
        """Return the rate as a function of Progress for a global batch size."""
        peak = self.peak(batch_size)
        return Schedule(
            start=peak,
            end=max(self.end * peak, self.floor),
            shape=self.shape,
            warmup=self.warmup,
            warmup_from=self.warmup_from * peak,
            warmup_reaches_start=self.warmup_reaches_peak,
            milestones=self.milestones,
            gamma=self.gamma,
            stretch=self.stretch,
            counted_from=self.counted_from,
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer settings.

    Attributes:
        name: optimizer.
        lr: learning rate.
        weight_decay: decoupled for AdamW, added to the gradient for Adam, SGD, RMSprop and LARS.
        momentum: SGD, RMSprop and LARS.
        betas: AdamW and Adam; RMSprop takes the second.
        eps: AdamW, Adam and RMSprop, outside of the root.
        trust: LARS trust coefficient (arXiv 1708.03888, Eq. 6).
        lars: which public LARS to follow (parity case `lars`).
        adapt_all: LARS adapts (and decays) biases and norms too (apex LARC in SwAV).
        layer_decay: factor on the rate per ViT block counted from the head; 1 switches it off.
        clip: gradient norm limit, or None; how the norm is taken is the method's.
    """

    name: Literal["adamw", "adam", "sgd", "rmsprop", "lars"] = "adamw"
    lr: LR
    weight_decay: Schedule = field(default_factory=lambda: constant(0.0))
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    trust: float = 1e-3
    lars: Literal["mocov3", "barlow", "simclr", "larc"] = "mocov3"
    adapt_all: bool = False
    layer_decay: float = 1.0
    clip: float | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which backbone, and how it starts.

    Attributes:
        name: a timm model name, `timm:NAME`, a run folder, or an exported file.
        image_size: side of the largest training view, pixels.
        patch_size: ViT patch side; None keeps the model's own.
        channels: image channels; None takes the data's. Evaluations show an encoder of fewer channels than the images
            have the first of them.
        stem: `cifar` replaces a ResNet's stem by a 3x3 convolution of stride 1 without pooling, `half` by one of
            stride 2.
        registers: number of register tokens; None keeps the model's own.
        drop_path: stochastic depth at the last block (linearly decayed towards the first).
        drop_samples: where a ViT's rate is above 0.1, leave samples out of a block instead of zeroing their results
            (DINOv2): faster by about that rate.
        uniform_drop_path: the same rate in every block of a transformer (DINOv2).
        positions: `sincos` fixes 2-d sin-cos position embeddings (MAE), `sincos_mocov3` those of MoCo v3's layout; None
            keeps the model's own.
        arch: sizes that replace the named model's own (depth, width, heads; a ResNet's layers and channels).
        init: random initialisation: timm's own, or for ViTs MAE's or MoCo v3's Xavier-uniform or BEiT's narrow normal.
        pretrained: start from timm's published weights (downloads them; only on request).
        weights: local file to start from, or None.
    """

    name: str
    image_size: int
    patch_size: int | None = None
    channels: int | None = None
    stem: Literal["imagenet", "cifar", "half"] = "imagenet"
    registers: int | None = None
    drop_path: float = 0.0
    drop_samples: bool = False
    uniform_drop_path: bool = False
    positions: Literal["sincos", "sincos_mocov3"] | None = None
    init: Literal["timm", "mae", "mocov3", "beit"] = "timm"
    arch: Arch = field(default_factory=Arch)
    pretrained: bool = False
    weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from.

    Attributes:
        train: one or several SRC strings (folder, list, shards, hf:NAME, photos).
        val: SRC with labels for the online probes, or None (then labels of `train`, if any, are split).
        mean: per-channel mean in [0, 1]; one value serves any number of channels.
        std: per-channel standard deviation.
        bad_limit: share of samples that may be quarantined before the run stops.
        stream: read shards once, from the first to the last, without an index of the whole: `on`, `off`, or `auto`,
            which streams where `train` names shards (.tar, .zip, .parquet). A stream has no labels.
        window: images of a stream over which order is shuffled; about twice as many are held encoded, by all
            processes together.
        images: how many images the stream has, where you know; otherwise a length in epochs counts them first.
        labelled: use a part of the labels only (a few-label stage), or None for all there are.
        unlabelled: further images, whose labels are not used, one or several SRC strings; for methods with
            pseudo-labels.
        text: how texts become tokens, for methods that read them; None otherwise.
    """

    train: tuple[str, ...] = ()
    val: str | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    bad_limit: float = 0.05
    stream: Literal["off", "on", "auto"] = "off"
    window: int = 4096
    images: int | None = None
    labelled: Labelled | None = None
    unlabelled: tuple[str, ...] = ()
    text: TextConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a recipe comes from.

    Attributes:
        source: paper section or public code.
        expected: the number to expect, with hardware and hours.
        deviations: what differs from the source, and why.
    """

    source: str = ""
    expected: str = ""
    deviations: str = ""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that determines a run.

    Attributes:
        name: catalogue name of the method.
        recipe: name of the recipe it came from.
        stage: title of this stage in a run of several; "" otherwise.
        start: finished run whose method this one inherits from (`Method.inherit`); a relative path counts from the
            run's own folder. None starts afresh.
        share: of the budget of a run of several stages, relative to the shares of the others.
        method: the method's own configuration.
        encoder: backbone.
        data: images.
        optim: optimizer.
        batch_size: samples per optimizer step over all processes and accumulation steps.
        length: duration of the run.
        budget: wall-clock seconds; replaces `length` by what fits after the first steps are measured.
        seed: the one seed.
        workers: loader threads per process; None measures the machine.
        devices: processes on this machine (GPUs, or CPU processes).
        device: auto, cpu, cuda or mps.
        precision: auto picks bf16 where it is fast (CUDA with bf16), else fp32.
        accumulate: forward/backward passes per optimizer step.
        checkpoint_activations: keep the input of each block of the encoder only, and compute the rest again in the
            backward pass: less memory for about a third more time.
        shard: `optimizer` divides the optimizer's state over the processes (ZeRO stage 1).
        compile: torch.compile the method.
        channels_last: memory format of images and CNN weights; None decides by backend.
        checkpoint_every: cadence of checkpoints.
        keep: how many recent checkpoints stay.
        log_every: cadence of metrics.
        probe_every: cadence of online evaluation (label-free ranks always, kNN and linear probe with labels).
        probe_images: at most this many images of train and of val in online evaluation.
        provenance: where the recipe comes from.
    """

    name: str
    recipe: str = ""
    stage: str = ""
    start: str | None = None
    share: float = 1.0
    method: MethodConfig
    encoder: EncoderConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig
    batch_size: int
    length: Duration
    budget: float | None = None
    seed: int = 0
    workers: int | None = None
    devices: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: int = 1
    checkpoint_activations: bool = False
    shard: Literal["none", "optimizer"] = "none"
    compile: bool = False
    channels_last: bool | None = None
    checkpoint_every: Duration = Epochs(1)
    keep: int = 2
    log_every: int = 10
    probe_every: Duration | None = None
    probe_images: int = 5000
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        """Check what no single field can know."""
        share = self.devices * self.accumulate
        if self.batch_size < 1 or self.batch_size % share:
            raise ConfigError(
                f"batch size {self.batch_size} does not split over {self.devices} processes x {self.accumulate} "
                f"accumulation steps; use a multiple of {share}."
            )
