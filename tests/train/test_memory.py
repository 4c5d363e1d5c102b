from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.train.loop import train
from imprint.train.memory import is_out_of_memory


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (KeyError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, answer):
    assert is_out_of_memory(error) is answer


def test_the_torch_of_this_machine_says_it_in_these_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def limit_rows(monkeypatch, most: int) -> None:
    from imprint.methods.simclr import SimCLR

    real = SimCLR.forward

    def forward(self, batch, t):
        if len(batch) > most:
            torch.empty(2**60, dtype=torch.uint8)  # a real refusal of the allocator
        return real(self, batch, t)

    monkeypatch.setattr(SimCLR, "forward", forward)


def test_the_error_names_sizes_that_fit(tmp_path, tiny, source, monkeypatch):
    limit_rows(monkeypatch, 5)
    with pytest.raises(ConfigError) as caught:
        train(tiny(), tmp_path / "run", source=source)
    text = str(caught.value)
    assert "out of memory at step 0: 16 images per forward pass" in text
    assert "--batch-size 16 --accumulate 4" in text
    assert "--batch-size 4 --accumulate 1" in text
    # And what it names works.
    assert train(tiny(accumulate=4), tmp_path / "second", source=source).finished


def test_not_even_one_image(tmp_path, tiny, source, monkeypatch):
    limit_rows(monkeypatch, 0)
    with pytest.raises(ConfigError, match="Not even one image"):
        train(tiny(), tmp_path / "run", source=source)


def test_any_other_runtime_error_passes_through(tmp_path, tiny, source, monkeypatch):
    from imprint.methods.simclr import SimCLR

    def forward(self, batch, t):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(SimCLR, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(tiny(), tmp_path / "run", source=source)
