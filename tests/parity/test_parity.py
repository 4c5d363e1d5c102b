"""Every numeric case against the arrays that the papers' public code produced."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from adapters import CASES, LOSSES
from compare import OPTIONAL, OWN_DRAWS, STATISTICS, VECTORS, load, relative_error, standard_errors, tolerance
from fidelity import FILE, measure

from imprint.methods.catalog import CATALOG


@pytest.mark.parametrize("name", [name for name in sorted(CASES) if not name.startswith(STATISTICS)])
def test_case(name: str) -> None:
    inputs, expected = load(name)
    got = CASES[name](inputs)
    missing = {key for key in expected if key not in got and not key.endswith(OPTIONAL)}
    assert not missing
    for key in expected.keys() & got.keys():
        assert got[key].shape == expected[key].shape, key
        assert relative_error(got[key], expected[key]) <= tolerance(name, key), key


@pytest.mark.parametrize("name", [name for name in sorted(CASES) if name.startswith(STATISTICS)])
def test_statistics_of_a_generator(name: str) -> None:
    inputs, expected = load(name)
    expected = {key: value for key, value in expected.items() if not key.startswith(OWN_DRAWS)}
    got = CASES[name](inputs)
    assert got.keys() >= expected.keys() - {"out_counts_sorted_std"}
    assert all(got[key].shape == value.shape for key, value in expected.items())
    errors = standard_errors(inputs, expected, got)
    assert len(errors) >= 4
    for key, error in errors.items():  # hundreds of places and bins are compared at once
        assert error < (4.0 if np.ndim(expected[key]) == 0 else 5.0), key
    for key in ("out_count_max", "out_block_aspect_min", "out_block_aspect_max"):
        if key in expected:
            assert got[key] == pytest.approx(expected[key]), key


def test_every_vector_has_an_adapter_and_every_method_its_cases() -> None:
    assert {file.stem for file in VECTORS.glob("*.npz")} == set(CASES)
    assert {case for row in CATALOG for case in row.parity} <= set(CASES)


def test_adapters_compare_and_do_not_copy() -> None:
    """A changed input changes the output: no adapter returns stored numbers."""
    for name, adapter in CASES.items():
        inputs, expected = load(name)
        moved = {
            key: value + 0.1 * np.cos(np.arange(value.size)).reshape(value.shape)
            if value.dtype == np.float64 and value.ndim > 0 and key != "lr"
            else value
            for key, value in inputs.items()
        }
        if all(np.array_equal(moved[key], inputs[key]) for key in inputs):
            continue  # cases made of whole numbers only
        got = adapter(moved)
        assert any(relative_error(got[key], expected[key]) > 1e-6 for key in expected.keys() & got.keys()), name


def rounded(inputs: dict[str, np.ndarray], names: tuple[str, ...], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return the inputs rounded to `dtype` and widened again: what a network in that precision hands over."""
    return {k: torch.from_numpy(v).to(dtype).double().numpy() if k in names else v for k, v in inputs.items()}


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
def test_low_precision_inputs_cost_their_own_rounding_only(
    name: str, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, _ = load(name)
    exact = CASES[name](rounded(inputs, LOSSES[name], dtype))
    leaves: dict[str, torch.Tensor] = {}

    def in_precision(array: np.ndarray, grad: bool = False) -> torch.Tensor:
        name_of = next((k for k in LOSSES[name] if array is inputs[k]), None)
        value = torch.from_numpy(np.array(array))
        if value.is_floating_point():
            value = value.to(dtype if name_of else torch.float32)
        value.requires_grad_(grad)
        if grad and name_of:
            leaves[name_of] = value
        return value

    monkeypatch.setitem(CASES[name].__globals__, "tensor", in_precision)
    monkeypatch.setitem(
        CASES[name].__globals__, "arrays", lambda tensors: {k: v.detach().double().numpy() for k, v in tensors.items()}
    )
    got = CASES[name](inputs)
    assert leaves and all(leaf.dtype == dtype for leaf in leaves.values())
    assert relative_error(got["out_loss"], exact["out_loss"]) < bound
    for key in [key for key in exact if key.startswith("grad_")]:
        assert relative_error(got[key], exact[key]) < bound, key


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_logits_of_1e4_stay_finite(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, expected = load(name)
    large = {k: v / np.abs(v).max() * 1e4 if k in LOSSES[name] else v for k, v in inputs.items()}

    def in_precision(array: np.ndarray, grad: bool = False) -> torch.Tensor:
        value = torch.from_numpy(np.array(array))
        if value.is_floating_point():
            value = value.to(dtype)
        return value.requires_grad_(grad)

    monkeypatch.setitem(CASES[name].__globals__, "tensor", in_precision)
    monkeypatch.setitem(
        CASES[name].__globals__, "arrays", lambda tensors: {k: v.detach().double().numpy() for k, v in tensors.items()}
    )
    got = CASES[name](large)
    for key in expected.keys() & got.keys():
        assert np.isfinite(got[key]).all(), key


def test_the_published_table_is_current() -> None:
    published, now = json.loads(FILE.read_text(encoding="utf-8")), measure()
    assert published.keys() == now.keys() == CASES.keys()
    for name, row in now.items():
        for table in (published[name], row):
            if name.startswith(STATISTICS):
                assert 0 <= float(str(table["worst_standard_errors"])) <= 5, name
            else:
                assert 0 <= float(str(table["worst_relative_error"])) <= 1e-9, name
        assert published[name]["arrays"] == row["arrays"]
