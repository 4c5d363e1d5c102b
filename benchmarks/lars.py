"""One LARS step on ResNet-50's parameters: ours, lightly's, stable-pretraining's, and torch's SGD as the floor.

python benchmarks/lars.py [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from measure import child_main, measure, rival_module, write_results

RIVALS = ("imprint", "lightly", "stable-pretraining", "torch SGD", "torch SGD fused")
MODELS = {"quick": "resnet18", "full": "resnet50"}


def parameters(model: str) -> list[nn.Parameter]:
    """Return a model's parameters with gradients in place."""
    importlib.import_module("imprint.backbones.torchvision_compat")  # makes timm importable everywhere
    import timm

    torch.manual_seed(0)
    params = list(timm.create_model(model, num_classes=0).parameters())
    for parameter in params:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return params


def step_call(rival: str, model: str) -> Callable[[], object]:
    """A step with momentum .9 and decay 1e-6, biases and norms excluded where the optimizer knows how.

    Ours leaves gradients changed (decay is added in place), as a training step may: they are made anew in each.
    """
    params = parameters(model)
    thick, thin = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    groups = [{"params": thick, "weight_decay": 1e-6}, {"params": thin, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if rival == "imprint":
        from imprint.train.lars import LARS, lars_groups

        optimizer = LARS(lars_groups(params, "barlow", 1e-6), lr=1e-4, momentum=0.9, variant="barlow")
    elif rival == "lightly":
        optimizer = rival_module("lightly.utils.lars").LARS(groups, lr=1e-4, momentum=0.9)
    elif rival == "stable-pretraining":
        optimizer = rival_module("stable_pretraining.optim").LARS(groups, lr=1e-4, momentum=0.9)
    else:
        optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=0.9, fused=rival.endswith("fused"))
    return optimizer.step


def main() -> None:
    """Print the table and write benchmarks/results/lars.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ResNet-18; writes no result file")
    parser.add_argument("--threads", type=int, help="threads per process (default: all cores)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        rival, model = args.child.split("/")
        child_main(step_call(rival, model), repeats=30)
        return

    from rich.console import Console
    from rich.table import Table

    console = Console()
    model = MODELS["quick" if args.quick else "full"]
    results: dict[str, dict[str, float]] = {}
    table = Table("optimizer", "ms", "best ms", "peak MB", "time / imprint", title=f"one step on {model}")
    for rival in RIVALS:
        if rival == "stable-pretraining" and importlib.util.find_spec("stable_pretraining") is None:
            console.print("not installed, left out: stable-pretraining")
            continue
        try:
            figure = measure(__file__, f"{rival}/{model}", threads=args.threads)
        except RuntimeError as error:
            if rival == "imprint":
                raise
            console.print(f"{rival} does not run here: {str(error).strip().splitlines()[-1]}")
            continue
        results[rival] = asdict(figure)
        table.add_row(
            rival,
            f"{1e3 * figure.seconds:.1f}",
            f"{1e3 * figure.best:.1f}",
            f"{figure.peak_mb:.1f}",
            f"{figure.seconds / results['imprint']['seconds']:.2f}",
        )
    console.print(table)
    if not args.quick:
        console.print(f"written: {write_results('lars', {model: results}, command='python benchmarks/lars.py')}")


if __name__ == "__main__":
    main()
