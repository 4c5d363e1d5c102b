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
