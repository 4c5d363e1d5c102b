"""Loading parity vectors and measuring how far an adapter's arrays are from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

VECTORS = Path(__file__).parent / "vectors"
OPTIONAL = ("_code", "_float32", "_scratch")


def load(name: str, folder: Path = VECTORS) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (inputs and hyper-parameters, expected arrays) of a case."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        everything = {key: arrays[key] for key in arrays.files}
    expected = {key: value for key, value in everything.items() if key.startswith(("out_", "grad_"))}
    return {key: value for key, value in everything.items() if key not in expected}, expected


def tolerance(case: str, array: str) -> float:
    """Return the relative error allowed for an array."""
    if array.endswith("_float32"):
        return 1e-5
    if case == "w_mse" and array.startswith("grad_"):  # through a Cholesky factor
        return 1e-6
    return 1e-6 if case == "lidar" else 1e-9


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Return max |got - expected| over max |expected|, infinite for another shape or a value that is not finite."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    if expected.size == 0:
        return 0.0
    gap = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
    scale = np.abs(expected.astype(np.float64)).max()
    return float(gap / scale) if scale > 0 else float(gap)


STATISTICS = "maskgen_"
"""Cases of random generators: their arrays are statistics, compared in standard errors."""
OWN_DRAWS = ("out_masks", "out_example_")
"""Arrays of such cases that hold the public code's own draws."""


def draws_of(case: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return how many masks a generator's statistics were taken over, from their own standard error."""
    sem = float(expected["out_count_sem"])
    return (float(expected["out_count_std"]) / sem) ** 2 if sem > 0 else float(case.get("n_samples", 500))


def standard_errors(
    inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], got: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return by how many standard errors each statistic differs; smallest and largest values are not compared.

    Means of counts use both sides' standard errors; shares and histograms those of a binomial share; averages over
    blocks, of which every mask has at least one, those of the given spread over as many blocks as masks.
    """
    n = draws_of(inputs, expected)
    own = draws_of({}, got)
    each = 1 / n + 1 / own
    std = float(expected["out_count_std"])
    batches = float(inputs["n_batches"]) if "n_batches" in inputs else n
    crops = own / n  # how many times as many draws are ours
    width = {
        "out_count_mean": std * np.sqrt(each),
        "out_block_logaspect_mean": float(expected.get("out_block_logaspect_std", 0)) * np.sqrt(each),
        "out_counts_sorted_mean": expected.get("out_counts_sorted_std", 0) * np.sqrt((1 + 1 / crops) / batches),
    }
    # The spread of a spread, from the histogram of counts.
    hist = expected["out_count_hist"]
    values = np.arange(hist.size) - float(expected["out_count_mean"])
    fourth = float((hist * values**4).sum())
    width["out_count_std"] = np.sqrt(max(fourth - std**4, 0.0) * each) / (2 * std) if std > 0 else 0.0
    out: dict[str, float] = {}
    for name, value in expected.items():
        if name in width:
            error = width[name]
        elif name.endswith(("_hist", "_freq", "_frac")):
            error = np.sqrt(np.maximum(value * (1 - value), 1 / n) * each)
        elif name in ("out_rand_count", "out_mask_count_cells", "out_n_masked_crops", "out_upperbound"):
            error = 0.0
        elif name == "out_block_logaspect_std":
            error = float(value) * np.sqrt(each / 2) * 2
        elif name == "out_block_area_mean":
            error = float(value) * np.sqrt(each) * 2  # areas spread about as widely as an exponential law
        else:
            continue
        gap = np.abs(np.asarray(got[name], dtype=np.float64) - np.asarray(value, dtype=np.float64))
        out[name] = float(np.max(np.where(gap == 0, 0.0, gap / np.maximum(error, 1e-12))))
    return out
