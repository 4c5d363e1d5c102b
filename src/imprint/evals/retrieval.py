"""Do texts find their images and images their texts? And, without texts, do images find others of their class?

Shapes: N images, M captions, E width of the shared space, D width of an encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.backbones.dual_encoder import DualEncoder, require_dual
from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError, unknown
from imprint.data.pairs import PairSource, names_pairs, open_pairs
from imprint.data.sources import Source, open_source, spread
from imprint.evals.features import FeatureTable, extract_for
from imprint.evals.image_text_features import joint_images, text_features
from imprint.evals.intervals import accuracy
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, timed
from imprint.evals.report import Figure, Metric, Page, Report
from imprint.evals.represent import pick_device
from imprint.ops.retrieval import best_rows, first_ranks, leave_one_out, recall_at
from imprint.viz.search_page import Found, search_page, search_sheet, thumbnails

Mode = Literal["auto", "text", "image"]
ON_SHEET, HITS_ON_SHEET = 8, 8


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(ProtocolConfig):
    """Settings of the search. R@1, R@5 and R@10 are the usual numbers (CLIP, arXiv 2103.00020, Table 13).

    Attributes:
        mode: `text` searches images by texts and texts by images; `image` searches images by images, right being those
            of the same class; `auto` is `text` for a source of pairs and `image` for one of images.
        ks: numbers of results that are looked at.
        limit: use at most this many images, spread evenly over the source (0: all).
        image_column: name or number of the column with image files; None finds it.
        caption_column: the same of the captions.
        drop_missing: leave out images that the file of pairs names and that are not there, instead of refusing it.
        queries: file with one text a line for the search page; None shows captions spread over the source.
        shown: captions on the search page without `queries`; 0 makes no page.
        hits: images that the page shows for each text.
    """

    mode: Mode = "auto"
    ks: tuple[int, ...] = (1, 5, 10)
    limit: int = 0
    image_column: str | None = None
    caption_column: str | None = None
    drop_missing: bool = False
    queries: str | None = None
    shown: int = 48
    hits: int = 10

    def __post_init__(self) -> None:
        """Check the mode and the counts."""
        super().__post_init__()
        if self.mode not in ("auto", "text", "image"):
            raise unknown("mode of retrieval", self.mode, ("auto", "text", "image"))
        if not self.ks or min(self.ks) < 1:
            raise ConfigError("retrieval needs at least one k of 1 or more.")
        if self.limit < 0 or self.shown < 0 or self.hits < 1:
            raise ConfigError("retrieval: --limit and --shown must not be negative, and --hits at least 1.")


class Retrieval(Protocol):
    """Recall among the first k, both ways, over all pairs of a source; or, without texts, among the same images."""

    name: ClassVar[str] = "retrieval"
    Config: ClassVar[type[ProtocolConfig]] = RetrievalConfig

    @classmethod
    def open(cls, spec: Any, config: RetrievalConfig) -> Source:
        """Return pairs of images and captions (see `open_pairs`), or images, as the mode asks."""
        if isinstance(spec, (list, tuple)) and len(spec) == 1:
            spec = spec[0]
        wanted = config.mode
        if wanted == "auto":
            given = config.image_column is not None or config.caption_column is not None
            wanted = "text" if given or names_pairs(spec) else "image"
        if wanted == "image":
            return open_source(spec)
        return open_pairs(
            spec,
            image_column=config.image_column,
            caption_column=config.caption_column,
            drop_missing=config.drop_missing,
        )

    def run(self, encoder: Encoder, data: EvalData, config: RetrievalConfig | None = None) -> Report:
        """Search `data.train` in itself; R@1 from texts to images, or mAP@R of images, is the main number."""
        config = config or RetrievalConfig()
        source: Source = data.train
        by_text = config.mode == "text" or (config.mode == "auto" and isinstance(source, PairSource))
        if config.limit and len(source) > config.limit:
            source = source.subset(spread(len(source), config.limit))
        if by_text and not isinstance(source, PairSource):
            raise DataError(f"'{data.train.spec}' has no captions; give pairs (captions.csv), or --mode image.")
        cost: dict[str, float] = {"images": float(len(source))}
        if isinstance(source, PairSource) and by_text:
            return self._by_text(require_dual(encoder, self.name), source, data, config, cost)
        return self._by_image(encoder, source, data, config, cost)

    def _by_text(
        self, encoder: DualEncoder, source: PairSource, data: EvalData, config: RetrievalConfig, cost: dict[str, float]
    ) -> Report:
        cost["texts"] = float(len(source.captions))
        with timed(cost, "features_s"):
            table, images_NE = joint_images(encoder, source.images, data.normalise, config)
        with timed(cost, "texts_s"):
            texts = text_features(encoder, source.captions, config)
        # Captions of images that could not be decoded have no right answer any more, and leave.
        kept = np.isin(source.caption_image, table.index_N)
        owner = np.searchsorted(table.index_N, source.caption_image[kept])
        texts_ME = texts.tensor if kept.all() else texts.tensor[torch.from_numpy(kept)]
        group_M, group_N = torch.from_numpy(owner.astype(np.int64)), torch.arange(len(table))
        place = pick_device(config.device, torch.nn.Identity())
        images_NE, texts_ME = images_NE.to(place), texts_ME.to(place)
        group_M, group_N = group_M.to(place), group_N.to(place)
        with timed(cost, "search_s"):
            found_by_text = first_ranks(texts_ME, group_M, images_NE, group_N)
            found_by_image = first_ranks(images_NE, group_N, texts_ME, group_M)
        ways = {"text_to_image": found_by_text, "image_to_text": found_by_image}
        metrics: dict[str, Metric] = {}
        for way, ranks in ways.items():
            for k in config.ks:
                metrics[f"{way}_r@{k}"] = accuracy(recall_at(ranks, k), len(ranks))
            metrics[f"{way}_median_rank"] = Metric(value=float(np.median(ranks.numpy())), n=len(ranks))
        counts = np.bincount(owner, minlength=len(table))
        recalls = [metrics[f"{way}_r@{k}"].value for way in ways for k in config.ks]
        details: dict[str, Any] = {
            "mode": "text",
            "images": len(table),
            "captions": int(kept.sum()),
            "captions_per_image": [int(counts.min()), int(counts.max())],
            "left_out": {**vars(source.counted), "damaged_images": len(source) - len(table)},
            "captions_cut": int(texts.cut_M[kept].sum()),
            "context": encoder.text.tokenizer.context,
            "mean_recall": float(np.mean(recalls)),
            "chance": chance_of(counts, config.ks),
            "ties": "count against the query",
        }
        with timed(cost, "page_s"):
            figures, pages = self._shown(encoder, source, table, images_NE, texts_ME, kept, found_by_text, config)
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": {**describe(source), "captions": len(source.captions)}},
            metrics=metrics,
            main=f"text_to_image_r@{config.ks[0]}",
            details=details,
            cost=cost,
            figures=figures,
            pages=pages,
        )

    def _shown(
        self,
        encoder: DualEncoder,
        source: PairSource,
        table: FeatureTable,
        images_NE: Tensor,
        texts_ME: Tensor,
        kept_M: npt.NDArray[np.bool_],
        ranks_M: Tensor,
        config: RetrievalConfig,
    ) -> tuple[tuple[Figure, ...], tuple[Page, ...]]:
        """Return the search page and a sheet of its first texts."""
        asked: Sequence[str]
        right: list[int | None]
        ranks: list[int | None]
        if config.queries is not None:
            asked = read_lines(config.queries, "texts to search by")
            vectors = text_features(encoder, asked, config).tensor.to(images_NE.device)
            right, ranks = [None] * len(asked), [None] * len(asked)
        else:
            chosen = spread(int(kept_M.sum()), config.shown)
            rows = np.flatnonzero(kept_M)[chosen]
            asked = [source.captions[int(row)] for row in rows]
            vectors = texts_ME[torch.from_numpy(chosen).to(texts_ME.device)]
            right = [int(source.caption_image[row]) for row in rows]
            ranks = [int(ranks_M[int(i)]) for i in chosen]
        if not len(asked):
            return (), ()
        cosine, near = best_rows(vectors, images_NE, min(config.hits, len(table)))
        found = [
            Found(words, tuple(int(table.index_N[i]) for i in rows), tuple(values), own, rank)
            for words, rows, values, own, rank in zip(asked, near.tolist(), cosine.tolist(), right, ranks, strict=True)
        ]
        used = sorted({row for one in found for row in one.rows})
        pictures = thumbnails(source.images, used)
        names = {row: source.name(row) for row in used}
        own = "captions of the images, the right image framed" if config.queries is None else "texts of your own"
        about = f"{len(table):,} images of {source.spec}, searched by {own}; similarity is the cosine."
        document = search_page(found, pictures, names, f"Search by text: {encoder.name}", about)
        first = [found[int(i)] for i in spread(len(found), ON_SHEET)]
        cut = [
            Found(one.words, one.rows[:HITS_ON_SHEET], one.similarity[:HITS_ON_SHEET], one.right, one.rank)
            for one in first
        ]
        sheet = search_sheet(cut, pictures)
        caption = "Texts and the images nearest to them; a green frame marks the image the text was written for."
        return (Figure(name="search", caption=caption, picture=sheet),), (Page(name="search", document=document),)

    def _by_image(
        self, encoder: Encoder, source: Source, data: EvalData, config: RetrievalConfig, cost: dict[str, float]
    ) -> Report:
        if source.labels is None:
            raise DataError(
                f"retrieval of images by images asks for the same class, and '{source.spec}' has no labels. Give one "
                "folder per class, or pairs of images and captions (captions.csv, FILE:IMAGES) for a model of both."
            )
        with timed(cost, "features_s"):
            table = extract_for(encoder, source, data.normalise, config)
        assert table.labels_N is not None  # the source has them
        known = table.labels_N >= 0
        labels = torch.from_numpy(table.labels_N[known])
        place = pick_device(config.device, torch.nn.Identity())
        kept = F.normalize(table.tensor[torch.from_numpy(known)].to(place), dim=1)
        with timed(cost, "search_s"):
            hit, precision = leave_one_out(kept, labels.to(place))
        counted = ~precision.isnan()
        n = int(counted.sum())
        if n == 0:
            raise DataError(f"no class of '{source.spec}' has two images, so none can find another.")
        values = precision[counted].double()
        mean, half = float(values.mean()), 1.96 * float(values.std(correction=1) if n > 1 else 0.0) / math.sqrt(n)
        sizes = np.bincount(labels.numpy())
        metrics = {
            "map@r": Metric(
                value=100 * mean, low=100 * max(0.0, mean - half), high=100 * min(1.0, mean + half), n=n
            ),
            "r@1": accuracy(int(hit[counted].sum()), n),
        }  # fmt: skip
        share = float((sizes * (sizes - 1.0)).sum() / max(1.0, sizes.sum() * (sizes.sum() - 1.0)))
        details = {
            "mode": "image",
            "images": len(labels),
            "alone_in_their_class": int((~counted).sum()),
            "dimensions": int(kept.shape[1]),
            "chance": {"r@1": 100 * share},
        }
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(source)},
            metrics=metrics,
            main="map@r",
            details=details,
            cost=cost,
        )


def chance_of(counts_N: npt.NDArray[np.int64], ks: Sequence[int]) -> Mapping[str, float]:
    """Return what a random order would reach, in percent.

    From a text k / N; from an image with c of M captions 1 - C(M - c, k) / C(M, k), the mean over images.
    """
    images, captions = len(counts_N), int(counts_N.sum())
    told: dict[str, float] = {}
    sizes, many = np.unique(counts_N, return_counts=True)
    for k in ks:
        told[f"text_to_image_r@{k}"] = 100.0 * min(1.0, k / images)
        missed = [math.comb(captions - int(c), min(k, captions)) / math.comb(captions, min(k, captions)) for c in sizes]
        told[f"image_to_text_r@{k}"] = 100.0 * float(((1.0 - np.array(missed)) * many).sum() / images)
    return told


def read_lines(path: str, what: str) -> list[str]:
    """Return the lines of a text file that say something.

    Raises:
        DataError: for a file that cannot be read or says nothing.
    """
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(f"the file '{path}' with {what} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the file '{path}' with {what} is not UTF-8 text: {error}.") from error
    kept = [line for line in lines if line and not line.startswith("#")]
    if not kept:
        raise DataError(f"the file '{path}' with {what} has no lines.")
    return kept
