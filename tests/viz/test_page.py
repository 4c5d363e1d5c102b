"""The page: escaping, policy, what is left out."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from imprint.viz.page import Section, cards, figure, page, payload, table, text

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def test_text_and_payload_cannot_break_out() -> None:
    assert "<" not in text(HOSTILE) and '"' not in text(HOSTILE) and "'" not in text(HOSTILE)
    inside = payload({"name": HOSTILE})
    assert "<" not in inside and ">" not in inside and json.loads(inside) == {"name": HOSTILE}
    assert text("caf\udce9.png") == "caf\ufffd.png"


def test_every_builder_escapes() -> None:
    document = page(
        HOSTILE,
        HOSTILE,
        cards([(HOSTILE, HOSTILE, HOSTILE)]),
        [Section(HOSTILE, HOSTILE, table((HOSTILE,), [(HOSTILE,)])), Section("gone", HOSTILE, reason=HOSTILE)],
        HOSTILE,
    )
    assert document.count("<script") == 1 and "<img" not in document


def test_policy_allows_our_script_alone_and_no_network() -> None:
    document = page("t", "s", "", [], "f")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', document).group(1)
    script = re.search(r"<script>(.*)</script>", document, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", document)


def test_empty_sections_move_to_the_end_with_their_reason() -> None:
    document = page("t", "s", "", [Section("a", "Gone", reason="No file."), Section("b", "Here", "<p>x</p>")], "f")
    assert '<section id="a">' not in document and '<section id="b">' in document
    assert "<b>Gone.</b> No file." in document and 'href="#a"' not in document


def test_figures_are_inline() -> None:
    import numpy as np

    shown = figure(np.zeros((4, 6, 3), np.uint8), HOSTILE, HOSTILE)
    assert 'width="6" height="4"' in shown and 'src="data:image/jpeg;base64,' in shown and shown.count("<img") == 1
