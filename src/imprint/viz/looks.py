"""What can be looked at, and the settings of each kind; plain data, so that help costs no import of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imprint.core.errors import ConfigError, unknown

Layout = Literal["t-SNE", "UMAP", "PCA"]
Rest = Literal["drop", "place"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Settings that every picture shares.

    Attributes:
        image_size: side of the view an encoder is given, in pixels; None takes each encoder's own.
        device: auto, cpu, cuda or mps.
        workers: loader threads; None measures the machine.
        seed: of the weights of untrained encoders and of layouts.
    """

    image_size: int | None = None
    device: str = "auto"
    workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without an encoder."""
        for name in ("image_size", "images", "side", "heads", "fit", "matches", "neighbours", "sample", "columns"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', '-')} must be 1 or more, got {value}.")


@dataclass(frozen=True, kw_only=True)
class ImagesLook(Look):
    """Settings of pictures that show some images.

    Attributes:
        images: how many, spread evenly over the source.
        rows: which positions of the source instead.
        side: side of an image in the picture, in pixels.
    """

    images: int = 8
    rows: tuple[int, ...] = ()
    side: int = 128


@dataclass(frozen=True, kw_only=True)
class AttentionLook(ImagesLook):
    """Attention of the class token, one column a head (DINO, arXiv 2104.14294, Fig. 1).

    Attributes:
        images: how many, spread evenly over the source.
        layer: block, negatives count back from the last.
        heads: at most this many, the first ones; the mean is over all.
        keep: show the patches that hold this share of each map's attention (0.6 in DINO's Fig. 4) in place of heat.
    """

    images: int = 4
    layer: int = -1
    heads: int = 12
    keep: float | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutLook(ImagesLook):
    """Attention through all blocks (arXiv 2005.00928).

    Attributes:
        residual: share of the residual connection in each block, 0.5 in the paper.
    """

    residual: float = 0.5

    def __post_init__(self) -> None:
        """Check the share."""
        super().__post_init__()
        if not 0 <= self.residual < 1:
            raise ConfigError(f"residual {self.residual:g} is a share; give one from 0 up to, but not, 1.")


@dataclass(frozen=True, kw_only=True)
class PcaLook(ImagesLook):
    """Principal components of patch features over a set of images (DINOv2, arXiv 2304.07193, Fig. 1).

    Attributes:
        fit: images that the components are found on, those shown among them.
        layer: block or stage; None is a ViT's output, or a CNN's deepest stage of at least 8 places a side.
    """

    fit: int = 64
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class CorrespondenceLook(Look):
    """Matches between two images.

    Attributes:
        rows: positions of the two images; none takes the most similar two of 64 spread over the source.
        point: x and y of the point of the heat map in the first image, each from 0 to 1.
        matches: at most this many lines, the most similar mutual neighbours.
        layer: block or stage; None is a ViT's output, or a CNN's deepest stage of at least 8 places a side.
        side: side of an image in the picture, in pixels.
    """

    rows: tuple[int, ...] = ()
    point: tuple[float, float] = (0.5, 0.5)
    matches: int = 40
    layer: int | None = None
    side: int = 336


@dataclass(frozen=True, kw_only=True)
class NormsLook(ImagesLook):
    """Norms of patch tokens before the final norm (arXiv 2309.16588)."""


@dataclass(frozen=True, kw_only=True)
class MapLook(Look):
    """The embedding in a plane.

    Attributes:
        layouts: t-SNE, UMAP (needs the extra `maps`) or PCA; one picture each.
        sample: most images that t-SNE and UMAP lay out, spread evenly over the source.
        rest: the other images are left out (drop) or placed among their nearest laid-out neighbours (place).
        side: side of a plane, in pixels.
    """

    layouts: tuple[Layout, ...] = ("t-SNE",)
    sample: int = 2000
    rest: Rest = "drop"
    side: int = 900


@dataclass(frozen=True, kw_only=True)
class NeighboursLook(ImagesLook):
    """Nearest neighbours by cosine.

    Attributes:
        images: queries: in turn one of every class, or spread evenly without labels.
        neighbours: per query.
        side: side of an image in the picture, in pixels.
    """

    neighbours: int = 8
    side: int = 80


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Attributes:
        name: word on the command line.
        config: class of its settings, here.
        function: what makes it, in `imprint.viz.look`.
        description: one line.
    """

    name: str
    config: type[Look]
    function: str
    description: str


KINDS: tuple[Kind, ...] = (
    Kind("attention", AttentionLook, "save_attention", "where the class token looks, one column a head (ViTs)"),
    Kind("rollout", RolloutLook, "save_rollout", "attention through all blocks (ViTs)"),
    Kind("pca", PcaLook, "save_pca", "principal components of patch features as foreground and colours"),
    Kind("correspondence", CorrespondenceLook, "save_correspondence", "matches between two images, and of one point"),
    Kind("norms", NormsLook, "save_norms", "norms of patch tokens"),
    Kind("map", MapLook, "save_map", "the embedding in a plane; a .html file shows thumbnails under the pointer"),
    Kind("neighbours", NeighboursLook, "save_neighbours", "the most similar images"),
)


def kind(name: str) -> Kind:
    """Return a kind by its name.

    Raises:
        ConfigError: for an unknown one, naming the nearest.
    """
    found = next((k for k in KINDS if k.name == name), None)
    if found is None:
        raise unknown("kind of picture", name, [k.name for k in KINDS])
    return found
