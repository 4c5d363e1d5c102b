"""How the language model of a run goes on with texts, as a section of its report."""

from __future__ import annotations

import json

from imprint.viz.page import Section, table, text
from imprint.viz.run_folder import RunFolder


def continuation_sections(run: RunFolder) -> list[Section]:
    """Return what the model wrote after beginnings of texts, beside the texts; nothing for runs that wrote none."""
    file = run.path / "samples" / "text.json"
    if not file.is_file():
        return []
    title = "Continuations"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        rows = [(row["prompt"], row["continuation"], row["text"]) for row in told["rows"]]
        held_out, warmth, few = bool(told["held_out"]), float(told["temperature"]), int(told["top_k"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Section("continuations", title, reason=f"samples/text.json cannot be read ({error}).")]
    about = (
        f"Beginnings of {'held-out rows' if held_out else 'rows of the training text'}, and what the model wrote after "
        f"them at the end of the run: each token drawn from the {few} likeliest, at temperature {warmth:g}."
    )
    body = f'<p class="about">{text(about)}</p>{table(("Beginning", "Written", "In the text"), rows)}'
    return [Section("continuations", title, body)]
