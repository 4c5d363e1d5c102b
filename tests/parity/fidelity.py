"""Write the table that `imprint methods --fidelity` prints: python tests/parity/fidelity.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "src" / "imprint" / "methods" / "fidelity.json"


def measure() -> dict[str, dict[str, object]]:
    """Return the worst relative error of each case and the array where it is, compared arrays counted.

    Of a random generator it is the worst difference of a statistic, in standard errors.
    """
    sys.path.insert(0, str(Path(__file__).parent))
    from adapters import CASES
    from compare import OWN_DRAWS, STATISTICS, load, relative_error, standard_errors, tolerance

    table: dict[str, dict[str, object]] = {}
    for name, adapter in sorted(CASES.items()):
        inputs, expected = load(name)
        got = adapter(inputs)
        if name.startswith(STATISTICS):
            drawn = standard_errors(inputs, {k: v for k, v in expected.items() if not k.startswith(OWN_DRAWS)}, got)
            worst = max(drawn, key=lambda k: drawn[k])
            table[name] = {"worst_standard_errors": round(drawn[worst], 2), "array": worst, "arrays": len(drawn)}
            continue
        exact = {k: v for k, v in expected.items() if tolerance(name, k) <= 1e-6}  # not the float32 references
        errors = {k: relative_error(got[k], exact[k]) for k in exact}
        worst = max(errors, key=lambda k: errors[k])
        table[name] = {"worst_relative_error": float(f"{errors[worst]:.2e}"), "array": worst, "arrays": len(errors)}
    return table


if __name__ == "__main__":
    FILE.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"), end="")
