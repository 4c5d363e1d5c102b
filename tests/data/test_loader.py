"""The loader: equal bytes whatever the workers, ranks and restarts; errors, closing, evaluation passes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from imprint.core.errors import BadImage, ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.assembly import PROBES, available_cores, replacements
from imprint.data.batch import Batch
from imprint.data.loader import Loader, sweep
from imprint.data.mask_kinds import RandomMask
from imprint.data.sources import Sample, Source
from imprint.data.views import CenterCrop, Crop, Look, View

LOOK = Look(flip=0.5, brightness=0.4, contrast=0.4, jitter=0.8, grey=0.2)
VIEWS = (
    View(name="global", count=2, crop=Crop(size=16), look=LOOK),
    View(name="local", count=3, crop=Crop(size=8, scale=(0.1, 0.4)), look=LOOK),
)
MASKS = (RandomMask(name="patches", count=2, grid=(4, 4), ratio=0.6),)
PLAIN = View(name="eval", crop=CenterCrop(size=16, resize=16))


def source(size: int = 60, labels: bool = True) -> ArraySource:
    images = np.random.default_rng(7).integers(0, 256, (size, 24, 20, 3), dtype=np.uint8)
    return ArraySource(images, labels=np.arange(size) % 5 if labels else None)


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.views[k], b.views[k]) for k in a.views] + [(a.masks[k], b.masks[k]) for k in a.masks]
    pairs.append((a.index_B, b.index_B))
    if a.labels_B is not None and b.labels_B is not None:
        pairs.append((a.labels_B, b.labels_B))
    return a.views.keys() == b.views.keys() and all(torch.equal(x, y) for x, y in pairs)


def run(steps: int, start: int = 0, of: Source | None = None, **options: Any) -> list[Batch]:
    with Loader(of or source(), VIEWS, MASKS, **{"batch_size": 16, "seed": 3, "workers": 2} | options) as loader:
        return list(loader.batches(start, steps))


def test_a_batch_has_what_was_declared() -> None:
    batch = run(1)[0]
    assert batch.views["global"].shape == (2, 16, 3, 16, 16) and batch.views["local"].shape == (3, 16, 3, 8, 8)
    assert batch.views["global"].dtype == torch.uint8
    assert batch.masks["patches"].shape == (2, 16, 16) and batch.masks["patches"].dtype == torch.bool
    assert (batch.masks["patches"].sum(-1) == 16 - int(16 * (1 - 0.6))).all()
    assert batch.index_B.dtype == torch.int64 and len(set(batch.index_B.tolist())) == 16
    assert batch.labels_B is not None and torch.equal(batch.labels_B, batch.index_B % 5)
    assert run(1, of=source(labels=False))[0].labels_B is None


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 4}, {"prefetch": 1}, {"prefetch": 7}])
def test_workers_and_prefetching_change_no_byte(options: dict[str, int]) -> None:
    for a, b in zip(run(8), run(8, **options), strict=True):
        assert same(a, b)


def test_two_ranks_have_the_rows_of_one() -> None:
    whole = run(6)
    parts = [run(6, rank=r, world=2) for r in range(2)]
    for step, batch in enumerate(whole):
        for r in range(2):
            assert same(batch.part(8 * r, 8 * (r + 1)), parts[r][step])


def test_starting_at_a_step_equals_skipping_to_it() -> None:
    everything = run(9)
    for start in (1, 4, 7):  # within and beyond the first epoch of three steps
        for a, b in zip(everything[start:], run(9, start), strict=True):
            assert same(a, b)


def test_epochs_and_seeds_differ() -> None:
    batches = run(6)
    seen = {int(i): batches[0].views["global"][:, b] for b, i in enumerate(batches[0].index_B)}
    again = [(i, b) for batch in batches[3:] for b, i in enumerate(batch.index_B.tolist()) if i in seen]
    assert again
    later = {i: batch.views["global"][:, b] for batch in batches[3:] for b, i in enumerate(batch.index_B.tolist())}
    assert all(not torch.equal(later[i], seen[i]) for i in later if i in seen)
    assert not same(batches[0], run(1, seed=4)[0])


def test_a_kept_batch_stays_as_it_was() -> None:
    with Loader(source(), VIEWS, batch_size=16, seed=3, workers=2) as loader:
        kept, copies = [], []
        for step, batch in enumerate(loader.batches(0, 20)):
            if step % 3 == 0:
                kept.append(batch)
                copies.append(batch.views["global"].clone())
        for batch, copy in zip(kept, copies, strict=True):
            assert torch.equal(batch.views["global"], copy)


def test_memory_is_used_again() -> None:
    with Loader(source(), VIEWS, batch_size=16, seed=3, workers=2) as loader:
        addresses = {batch.views["global"].data_ptr() for batch in loader.batches(0, 40)}
    assert len(addresses) <= 2 + 3  # those ahead, the one in use, and one on its way back


def test_without_end_it_goes_on() -> None:
    with Loader(source(), VIEWS, batch_size=16, seed=3, workers=1) as loader:
        batches = loader.batches(2)
        for _ in range(12):
            next(batches)
        assert loader.steps_per_epoch == 3


class Odd(Source):
    """A source in which chosen samples fail in chosen ways."""

    spec = "odd"

    def __init__(self, base: Source, failures: dict[int, Exception]) -> None:
        self.base, self.failures = base, failures
        self.labels, self.classes = base.labels, base.classes
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.base)

    def read(self, i: int) -> Sample:
        self.reads.append(i)
        if i in self.failures:
            raise self.failures[i]
        return self.base.read(i)

    def name(self, i: int) -> str:
        return f"odd-{i}"

    @property
    def fingerprint(self) -> str:
        return self.base.fingerprint


def bad(indices: Iterable[int]) -> dict[int, Exception]:
    return {i: BadImage("corrupt", "planted") if i % 2 else OSError(5, "Input/output error") for i in indices}


@pytest.mark.parametrize("workers", [1, 4])
def test_bad_samples_are_replaced_as_the_keys_say(workers: int) -> None:
    failures = bad((3, 10, 41))
    odd = Odd(source(), failures)
    with Loader(odd, VIEWS, MASKS, batch_size=16, seed=3, workers=workers) as loader:
        got = list(loader.batches(0, 9))
        asked = [loader.sampler.indices(s) for s in range(9)]
        named = {e["index"]: e["reason"] for e in loader.quarantine.entries()}
    assert set(named) <= set(failures) and named.get(3, "corrupt") == "corrupt" and named.get(10) == "unreadable"
    met = 0
    for batch, wanted in zip(got, asked, strict=True):
        for b, i in enumerate(wanted.tolist()):
            stand_in = next(int(j) for j in replacements(3, i, 60) if int(j) not in failures) if i in failures else i
            met += i in failures
            assert int(batch.index_B[b]) == stand_in
        assert batch.labels_B is not None and torch.equal(batch.labels_B, batch.index_B % 5)
    assert met >= 3
    assert all(odd.reads.count(i) <= 4 for i in failures)  # known to be bad: not read again (threads may race)
    clean = run(9)
    for a, b in zip(got, clean, strict=True):
        same_rows = [k for k in range(16) if a.index_B[k] == b.index_B[k]]
        assert torch.equal(a.views["global"][:, same_rows], b.views["global"][:, same_rows])
        assert torch.equal(a.masks["patches"], b.masks["patches"])


def test_replacement_does_not_depend_on_rank_or_restart() -> None:
    odd = Odd(source(), bad((3, 10, 41)))
    whole = run(9, of=odd)
    for a, b in zip(whole[5:], run(9, 5, of=odd), strict=True):
        assert same(a, b)
    right = run(9, of=odd, rank=1, world=2)
    for a, b in zip(whole, right, strict=True):
        assert same(a.part(8, 16), b)


def test_too_many_bad_samples_stop_the_run() -> None:
    # The fourth is one too many; threads that were at work already may have found more by then.
    with pytest.raises(DataError, match=r"([4-9]|1[0-2]) of 60 samples of 'odd'"):
        run(100, of=Odd(source(), bad(range(12))))
    with pytest.raises(DataError, match=f"the {PROBES} samples that were tried"):
        run(1, of=Odd(source(), bad(range(60))), bad_limit=1.0)


def test_running_out_of_files_is_not_the_samples_fault() -> None:
    with pytest.raises(DataError, match="ulimit"):
        run(9, of=Odd(source(), {5: OSError(24, "Too many open files")}))


def test_other_errors_surface_with_the_sample_and_stop_the_threads() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError) as caught:
        run(9, of=Odd(source(), {5: ZeroDivisionError("planted")}))
    assert "sample 5: odd-5" in "".join(caught.value.__notes__)
    assert threading.active_count() == before


def test_closing_joins_the_threads_even_when_batches_wait() -> None:
    before = threading.active_count()
    loader = Loader(source(), VIEWS, batch_size=16, seed=3, workers=3)
    batches = loader.batches()
    held = next(batches)
    copy = held.views["local"].clone()
    loader.close()
    assert threading.active_count() == before
    assert torch.equal(held.views["local"], copy)
    with pytest.raises(ConfigError, match="closed"):
        next(loader.batches())


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_ends_a_run_that_waits_for_data() -> None:
    code = """
import os, signal, time, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
from imprint.data.arrays import ArraySource
from imprint.data.loader import Loader
from imprint.data.views import Crop, View
class Slow(ArraySource):
    def read(self, i):
        os.write(1, b"reading\\n")  # in one piece: print writes the line and its end apart
        time.sleep(0.2)
        return super().read(i)
with Loader(Slow(np.zeros((64, 8, 8, 3), np.uint8)), (View(name="v", crop=Crop(size=8)),),
            batch_size=64, seed=0, workers=2) as loader:
    next(loader.batches())
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert output.count("reading") < 40  # it did not read the other samples first


def test_leaving_early_stops_the_work_ahead() -> None:
    class Slow(Odd):
        def read(self, i: int) -> Sample:
            time.sleep(0.002)
            return super().read(i)

    odd = Slow(source(), {})
    with Loader(odd, VIEWS, batch_size=16, seed=3, workers=1, prefetch=8) as loader:
        batches = loader.batches()
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        time.sleep(0.01)
        reads = len(odd.reads)
        time.sleep(0.05)
        assert len(odd.reads) == reads < 16 * 9


def test_wrong_wishes() -> None:
    with pytest.raises(ConfigError, match="--batch-size 60 or less"):
        Loader(source(), VIEWS, batch_size=64, seed=0)
    with pytest.raises(ConfigError, match="workers"):
        Loader(source(), VIEWS, batch_size=8, seed=0, workers=0)
    with pytest.raises(ConfigError, match="distinct names"):
        Loader(source(), (PLAIN, PLAIN), batch_size=8, seed=0)


def test_a_sweep_is_ordered_and_complete() -> None:
    batches = list(sweep(source(), PLAIN, batch_size=16, workers=2))
    assert [len(b) for b in batches] == [16, 16, 16, 12]
    assert torch.cat([b.index_B for b in batches]).tolist() == list(range(60))
    again = list(sweep(source(), PLAIN, batch_size=60, workers=1))
    assert torch.equal(torch.cat([b.views["eval"] for b in batches], 1), again[0].views["eval"])


def test_a_limited_sweep_is_spread_over_the_source() -> None:
    batches = list(sweep(source(), PLAIN, batch_size=8, workers=1, limit=12))
    assert torch.cat([b.index_B for b in batches]).tolist() == list(range(0, 60, 5))
    assert sum(len(b) for b in sweep(source(), PLAIN, batch_size=8, workers=1, limit=1000)) == 60


def test_a_sweep_leaves_bad_samples_out(tmp_path: Any) -> None:
    odd = Odd(source(), bad((0, 1, 33)))
    path = tmp_path / "quarantine.jsonl"
    batches = list(sweep(odd, PLAIN, batch_size=2, workers=2, quarantine_path=path))
    kept = torch.cat([b.index_B for b in batches]).tolist()
    assert kept == [i for i in range(60) if i not in (0, 1, 33)]
    assert [len(b) for b in batches].count(1) == 1 and len(batches) == 29  # the first, all bad, is passed over
    assert len(path.read_text().splitlines()) == 3
    clean = {
        int(b.index_B[k]): b.views["eval"][:, k] for b in sweep(source(), PLAIN, batch_size=7) for k in range(len(b))
    }
    for batch in batches:
        for k, i in enumerate(batch.index_B.tolist()):
            assert torch.equal(batch.views["eval"][:, k], clean[i])
    with pytest.raises(DataError, match="3 of 10"):
        list(sweep(Odd(source(), bad(range(0, 60, 6))), PLAIN, batch_size=2, limit=10))


def test_leaving_a_sweep_early_joins_its_threads() -> None:
    before = threading.active_count()
    passing = sweep(source(), PLAIN, batch_size=4, workers=2)
    next(passing)
    assert threading.active_count() > before
    passing.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_cores_are_shared_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = available_cores()
    assert whole >= 1 and available_cores(10_000) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert available_cores(10_000) == whole


def test_sixteen_bits_stay_sixteen_bits() -> None:
    images = np.random.default_rng(0).integers(0, 65536, (8, 16, 16, 5), dtype=np.uint16)
    batch = next(sweep(ArraySource(images), PLAIN, batch_size=8, workers=1))
    assert batch.views["eval"].dtype == torch.uint16
    np.testing.assert_array_equal(batch.views["eval"][0].numpy(), images.transpose(0, 3, 1, 2))
