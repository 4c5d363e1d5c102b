"""Parity of Barlow Twins, VICReg and W-MSE."""

from __future__ import annotations

from collections.abc import Callable

from case import Case, Out, arrays, tensor

from imprint.losses.barlow_twins import barlow_twins, cross_correlation
from imprint.losses.vicreg import vicreg
from imprint.losses.w_mse import positive_distance
from imprint.ops.whitening import whiten


def barlow_case(case: Case) -> Out:
    """The loss, its two sums, and the matrix."""
    z1, z2, eps = tensor(case["z1"], True), tensor(case["z2"], True), float(case["bn_eps"])
    terms = barlow_twins(z1, z2, float(case["lambd"]), eps=eps)
    terms.loss.backward()
    return arrays(
        {
            "out_loss": terms.loss,
            "out_c": cross_correlation(z1, z2, eps),
            "out_on_diag": terms.on_diagonal,
            "out_off_diag": terms.off_diagonal,
            "grad_z1": z1.grad,
            "grad_z2": z2.grad,
        }
    )


def vicreg_case(case: Case) -> Out:
    """The loss and its three terms."""
    x, y = tensor(case["x"], True), tensor(case["y"], True)
    terms = vicreg(x, y, **{name: float(case[name]) for name in ("sim_coeff", "std_coeff", "cov_coeff")})
    terms.loss.backward()
    return arrays(
        {
            "out_loss": terms.loss,
            "out_repr": terms.invariance,
            "out_std": terms.variance,
            "out_cov": terms.covariance,
            "grad_x": x.grad,
            "grad_y": y.grad,
        }
    )


def w_mse_case(case: Case) -> Out:
    """The loss with normalised and with plain distances, and the first whitened sub-batch of the first view."""
    h = tensor(case["h"], True)
    h_VBD = h.unflatten(0, (int(case["n_views"]), -1))
    perms_IB = tensor(case["perms"])[: int(case["w_iter"])]
    z_VIGSD = whiten(h_VBD, perms_IB, size=int(case["w_size"]), eps=float(case["eps"]))
    loss = positive_distance(z_VIGSD)
    loss.backward()
    return arrays(
        {
            "out_loss": loss,
            "out_loss_mse": positive_distance(z_VIGSD, norm=False),
            "out_whitened": z_VIGSD[0, 0, 0],
            "grad_h": h.grad,
        }
    )


CASES: dict[str, Callable[[Case], Out]] = {
    "barlow_twins": barlow_case,
    "vicreg": vicreg_case,
    "w_mse": w_mse_case,
}

LOSSES: dict[str, tuple[str, ...]] = {"barlow_twins": ("z1", "z2"), "vicreg": ("x", "y"), "w_mse": ("h",)}
