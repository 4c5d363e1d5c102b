"""From principal components to a plane: t-SNE, UMAP, and places for points that were not laid out.

Shapes: S points laid out, M points to place, C components.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch

from imprint.core.errors import MissingExtra
from imprint.ops.neighbours import nearest

Plane = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]
NEAREST = 5


def tsne(scores_SC: Scores, seed: int) -> Plane:
    """Return t-SNE (van der Maaten and Hinton, 2008) at perplexity 30, or less for few points; started from PCA."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(scores_SC) - 1) / 3)
    # Started from PCA and seeded, so the same features give the same map.
    model = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed, n_jobs=1)
    scores = scores_SC.astype(np.float64)
    start = scores if scores.shape[1] > 1 else np.c_[scores, np.zeros(len(scores))]
    return np.asarray(model.fit_transform(start), dtype=np.float64)


def umap(scores_SC: Scores, seed: int) -> Plane:
    """Return UMAP (arXiv 1802.03426) with 15 neighbours and min_dist 0.1, its authors' defaults; started from PCA.

    Raises:
        MissingExtra: without umap-learn.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtra("umap-learn", "maps", "a UMAP map") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread; few or equal points
        model = UMAP(n_components=2, n_neighbors=min(15, len(scores_SC) - 1), init="pca", random_state=seed, n_jobs=1)
        return np.asarray(np.nan_to_num(model.fit_transform(scores_SC)), dtype=np.float64)


def placed(scores_MC: Scores, scores_SC: Scores, plane_S2: Plane, sample_S: npt.NDArray[np.int64]) -> Plane:
    """Return places for all points: those laid out keep theirs, others lie among their 5 nearest of them.

    The weights are 1 / squared distance in the components.

    Args:
        scores_MC: all points.
        scores_SC: those laid out.
        plane_S2: their places.
        sample_S: their rows among all points.
    """
    similarity_MK, index_MK = _nearest(scores_MC, scores_SC, min(NEAREST, len(scores_SC)))
    square_MK = np.maximum((scores_MC.astype(np.float64) ** 2).sum(1, keepdims=True) - 2 * similarity_MK, 1e-9)
    weight = 1 / square_MK
    weight /= weight.sum(1, keepdims=True)
    out = (plane_S2[index_MK] * weight[..., None]).sum(1)
    out[sample_S] = plane_S2
    return np.asarray(out, dtype=np.float64)


def clusters_of(scores_SC: Scores, count: int, seed: int) -> tuple[npt.NDArray[np.int64], Scores]:
    """Return k-means clusters of points and their centres."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters (a collapsed encoder)
        model = KMeans(count, n_init=1, random_state=seed).fit(scores_SC)
    return np.asarray(model.labels_, dtype=np.int64), np.asarray(model.cluster_centers_, dtype=np.float32)


def nearest_centre(scores_MC: Scores, centres_KC: Scores) -> npt.NDArray[np.int64]:
    """Return the number of the nearest centre of every point."""
    return _nearest(scores_MC, centres_KC, 1)[1][:, 0]


def to_square(points: Plane) -> Plane:
    """Scale a plane to the unit square, its middle in the middle, both directions alike."""
    low, high = points.min(0), points.max(0)
    span = float((high - low).max()) or 1.0
    return np.asarray(0.5 + (points - (low + high) / 2) / span, dtype=np.float64)


def _nearest(queries: Scores, bank: Scores, k: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return q.b - |b|^2 / 2 of the k nearest by Euclidean distance, and their rows.

    |q - b|^2 = |q|^2 - 2 (q.b - |b|^2 / 2), so one more column makes the nearest those of largest inner product.
    """
    half = -0.5 * (bank.astype(np.float64) ** 2).sum(1, keepdims=True)
    wide_q = torch.from_numpy(np.c_[queries, np.ones(len(queries), np.float32)].astype(np.float32))
    wide_b = torch.from_numpy(np.c_[bank, half].astype(np.float32))
    value, index = nearest(wide_q, wide_b, k)
    return value.double().numpy(), index.numpy()
