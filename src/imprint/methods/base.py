"""The method contract. A method declares views, modules, a loss and what surrounds an optimizer step; the trainer owns
device, precision, loops, optimizers, checkpoints, logging and evaluation. Depth below `Method` is 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.mask_kinds import Mask
from imprint.data.pseudo_labels import PseudoLabels
from imprint.data.texts import Texts
from imprint.data.views import Clip, View


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of every method's frozen configuration; defaults are the paper's."""


@dataclass(frozen=True)
class StepOutput:
    """Result of one forward: a scalar loss (mean over this process's samples) and detached 0-d metrics by name."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class ParamGroup:
    """Parameters that share optimizer settings.

    Attributes:
        name: shown in logs and kept in checkpoints.
        params: the parameters.
        names: their dotted names, same order.
        lr_scale: factor on the scheduled learning rate (layer decay, patch embedding).
        decay: whether weight decay applies.
        constant_lr: use the schedule's `start` throughout (SimSiam's predictor).
        adapt: whether LARS adapts the rate per parameter.
        decay_scale: factor on the scheduled weight decay, where it applies.
        objective: which of `Method.objectives` moves these parameters, or which of them; "" for methods without. An
            optimizer keeps one state for a parameter, whichever objective moves it.
    """

    name: str
    params: list[nn.Parameter]
    names: list[str]
    lr_scale: float = 1.0
    decay: bool = True
    constant_lr: bool = False
    adapt: bool = True
    decay_scale: float = 1.0
    objective: str | tuple[str, ...] = ""

    def moved_by(self, objective: str) -> bool:
        """Tell whether this objective moves the parameters."""
        return objective in (self.objective if isinstance(self.objective, tuple) else (self.objective,))


Clipping = Literal["global", "tensor", "module"]


class Method(nn.Module):
    """Base of every method. A subclass defines `Config`, `views`, `forward`, `encoder`, and what else it needs.

    Attributes:
        Config: the frozen configuration class.
        fit_images: how many training images `fit` wants to see, 0 for none.
        needs_tokens: refuse encoders without patch tokens.
        needs_labels: refuse sources without labels.
        clipping: norm taken over all parameters, over each tensor (DINO's code), or over each direct child module.
        objectives: names of losses that are stepped one after the other on the same batch, each moving its own
            parameter groups only (adversarial methods: discriminator, then generator); () for one loss over all.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    fit_images: ClassVar[int] = 0
    needs_tokens: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    clipping: ClassVar[Clipping] = "global"
    objectives: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Return the views the method trains on, at the given image size."""
        raise TypeError(f"{cls.__name__} declares no views")

    @classmethod
    def clips(cls, cfg: MethodConfig, image_size: int) -> tuple[Clip, ...]:
        """Return the clips of methods that learn from video; they are then all that a batch holds, no views."""
        return ()

    @classmethod
    def texts(cls, cfg: MethodConfig) -> Texts | None:
        """Return the rows of tokens the method learns from, beside images or (with no views) alone; None without text.

        A method with text has a field `vocabulary` in its configuration, 0 for as many tokens as the run's tokenizer
        has; the trainer fills it in.
        """
        return None

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Return the masks drawn in the data path."""
        return ()

    @classmethod
    def pseudo_labels(cls, cfg: MethodConfig) -> PseudoLabels | None:
        """Return what the network of the run that this one starts from shall say about unlabelled images; None asks it
        nothing.

        It says it once, before the first step. Batches then hold pseudo-labelled images beside the labelled ones, with
        `targets` as of `data.pseudo_labels.PseudoLabelled`.
        """
        return None

    @classmethod
    def wants_classes(cls, cfg: MethodConfig) -> bool:
        """Tell whether the trainer shall fill in `cfg.classes`, a field of methods with a classifier.

        The run that this one starts from knows the number, or else the labels do.
        """
        return getattr(cfg, "classes", None) == 0

    def inherit(self, previous: Method) -> None:
        """Take over from the method of the run that this one starts from, rebuilt with its final weights.

        Called once, before the optimizer is made and a checkpoint of this run is put back. Modules may be added here (a
        frozen teacher); they belong to this run's checkpoints. By default a method goes on from its own weights.

        Raises:
            ConfigError: when this method cannot start from that one.
        """
        if type(previous) is not type(self):
            raise ConfigError(f"{type(self).__name__} does not say how to start from a {type(previous).__name__}.")
        try:
            self.load_state_dict(previous.state_dict())
        except RuntimeError as error:
            raise ConfigError(f"the run to start from has other shapes: {error}") from error

    def lacks(self) -> str | None:
        """Say what only an earlier run can give and is not there; the run is then refused before it writes anything."""
        return None

    def fit(self, images_BCHW: Tensor) -> None:
        """Learn from plain training images what must be known before the first step (iGPT's colour clusters).

        Called once in a new run, after `inherit` and before the optimizer is made, on every process with the same
        `fit_images` images (or as many as there are), spread over the training source, in the evaluation view,
        normalised. What is learned belongs into buffers: a resumed run reads it from its checkpoint.
        """

    def frozen_teacher(self) -> nn.Module | None:
        """Return a module that never learns and says of images (B, C, H, W) what the method wants to know: name ->
        (B, ...); None without one.

        Where the method's first view is always the same, the trainer asks it once about every image, keeps the answers
        in the run folder, and puts them into `Batch.targets` under their names; otherwise the method asks in `forward`.
        """
        return None

    def normalised_by(self, normalise: Normalise) -> None:
        """Learn how images are normalised: called once after construction, for methods that need the colours
        themselves.
        """

    def tokenized_by(self, tokenizer: TextTokenizer) -> None:
        """Learn which tokenizer makes the tokens: called once after construction, for methods with text.

        Until then the special tokens have the ids of a tokenizer that is learned here (`text_tokenizer.SPECIAL`).
        """

    def judge(self, batch: Batch, t: Progress) -> tuple[Tensor, Tensor]:
        """Return the loss in nats (T,) of every token that is predicted in a batch of text, and these tokens (T,).

        Methods of text alone have it; held-out text is judged by it, in evaluation mode and without gradient. What is
        drawn (masks) must depend on the batch only and not on `t`, so that all checkpoints are asked the same.
        """
        raise TypeError(f"{type(self).__name__} predicts no tokens")

    def judged_places(self, batch: Batch) -> Tensor:
        """Return bool (B, L): which tokens `judge` predicts, in its order: row by row, from left to right."""
        raise TypeError(f"{type(self).__name__} predicts no tokens")

    def classify(self, images_BCHW: Tensor) -> Tensor | None:
        """Return class logits (B, K) when the method has a classifier of its own; the probe scores it on `val`."""
        return None

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Return loss and metrics for one prepared batch at progress `t`.

        A method with `objectives` takes a third argument, `objective: str`. It is called once for each of them, in
        their order, with the updates of the earlier ones made; the parameters of the others take no gradient meanwhile.
        """
        raise TypeError(f"{type(self).__name__} declares no forward")

    def before_optimizer_step(self, t: Progress) -> None:
        """Act on gradients after clipping, once per step, without grad (freeze a layer); before the last objective's
        update.
        """

    def after_optimizer_step(self, t: Progress) -> None:
        """Act on weights once per step, after all updates, without grad (EMA, normalisation)."""

    @property
    def encoder(self) -> Encoder:
        """The encoder that is evaluated and exported."""
        raise TypeError(f"{type(self).__name__} declares no encoder")

    def check_batch(self, rows: int) -> None:
        """Refuse a batch that the method cannot work with, before a run writes anything.

        Args:
            rows: images of one forward pass over all processes.

        Raises:
            ConfigError: saying which sizes fit.
        """

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Say which safeguards against collapse this configuration switches off, a sentence each with its cure.

        The trainer puts them before its general advice when a run shows signs of collapse.
        """
        return ()

    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return pictures for the report, name -> (B, C, H, W) normalised floats; empty when the method makes none."""
        return {}

    def param_groups(self) -> list[ParamGroup]:
        """Return trainable parameters in groups: decay on matrices, none on biases, norms, tokens and positions."""
        return split_decay(self.named_parameters())


NO_DECAY_NAMES = ("pos_embed", "cls_token", "reg_token", "mask_token", "dist_token")


def split_decay(
    named: Iterable[tuple[str, nn.Parameter]], *, prefix: str = "", lr_scale: float = 1.0, decay_tokens: bool = False
) -> list[ParamGroup]:
    """Split trainable parameters into a decayed and an undecayed group.

    1-D parameters (biases, norms), tokens and positions get no weight decay and no LARS adaptation; `decay_tokens`
    decays tokens and positions, as the public code of DINO and MAE does.
    """
    decayed = ParamGroup(name=f"{prefix}decay", params=[], names=[], lr_scale=lr_scale)
    plain = ParamGroup(name=f"{prefix}no_decay", params=[], names=[], lr_scale=lr_scale, decay=False, adapt=False)
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim <= 1 or (not decay_tokens and name.rsplit(".", 1)[-1] in NO_DECAY_NAMES)
        group = plain if bare else decayed
        group.params.append(parameter)
        group.names.append(name)
    return [g for g in (decayed, plain) if g.params]


def one_group(named: Iterable[tuple[str, nn.Parameter]]) -> list[ParamGroup]:
    """Put all trainable parameters into one decayed group: public codes that hand `model.parameters()` over."""
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    return [ParamGroup(name="all", params=[p for _, p in trained], names=[n for n, _ in trained])]
