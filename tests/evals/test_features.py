"""extract and its cache: order, tokens, content keys, kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.batch import Normalise
from imprint.evals import feature_cache
from imprint.evals.features import extract
from imprint.evals.represent import evaluation_view

PLAIN = Normalise((0.0,), (1.0,))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def test_rows_follow_the_source_and_equal_a_direct_call(tiny, train) -> None:
    table = extract(tiny, train, normalise=PLAIN, batch_size=37, workers=2, device="cpu")
    images = torch.from_numpy(np.stack([train.read(i) for i in range(len(train))])).permute(0, 3, 1, 2)
    tiny.eval()
    with torch.no_grad():
        want = tiny.encode(images / 255.0).pooled_BD
    torch.testing.assert_close(table.tensor, want, rtol=1e-4, atol=1e-4)
    assert table.features_ND.dtype == np.float32
    assert (table.index_N == np.arange(len(train))).all()
    assert table.labels_N is not None and (table.labels_N == train.labels).all()
    assert table.classes == ("ant", "bee", "cat", "dog")
    assert table.names[3] == train.name(3) and list(table.names[:2]) == [train.name(0), train.name(1)]


def test_encoder_comes_back_as_it_was(tiny, test) -> None:
    tiny.train()
    tiny.dropout.eval()
    extract(tiny, test, device="cpu", cache=False)
    assert tiny.training and not tiny.dropout.training
    assert torch.is_grad_enabled()
    assert tiny.encode(torch.rand(2, 3, 8, 8)).pooled_BD.requires_grad


def test_second_call_reads_the_cache_and_any_change_misses(tiny, train, test) -> None:
    first = extract(tiny, train, device="cpu")
    calls = tiny.calls
    again = extract(tiny, train, device="cpu")
    assert tiny.calls == calls and isinstance(
        again.features_ND.base if again.features_ND.base is not None else again.features_ND, np.memmap
    )
    assert (first.features_ND == again.features_ND).all()
    changes = [
        lambda: extract(tiny, test, device="cpu"),
        lambda: extract(tiny, train, device="cpu", normalise=PLAIN),
        lambda: extract(tiny, train, device="cpu", tokens="cls"),
        lambda: extract(tiny, train, device="cpu", layers=(0, 1)),
        lambda: extract(tiny, train, device="cpu", image_size=16),
        lambda: extract(tiny, train, device="cpu", precision="bf16"),
        lambda: extract(tiny, train.subset(np.arange(10)), device="cpu"),
    ]
    for change in changes:
        before = tiny.calls
        change()
        assert tiny.calls > before
    with torch.no_grad():
        tiny.weight[0, 0] += 1e-3
    before = tiny.calls
    other = extract(tiny, train, device="cpu")
    assert tiny.calls > before and not np.array_equal(other.features_ND, first.features_ND)


def test_cached_features_cannot_be_altered_through_the_table(tiny, train) -> None:
    extract(tiny, train, device="cpu").features_ND[:] = 0
    assert extract(tiny, train, device="cpu").features_ND.any()


def test_damaged_entry_is_made_again(tiny, train, cache: Path) -> None:
    want = extract(tiny, train, device="cpu").features_ND.copy()
    (entry,) = cache.iterdir()
    for damage in (b"", b"garbage", (entry / "features.npy").read_bytes()[:300]):
        (entry / "features.npy").write_bytes(damage)
        assert np.array_equal(extract(tiny, train, device="cpu").features_ND, want)


def test_error_or_kill_while_writing_leaves_no_entry(tiny, train, cache: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), feature_cache.entry("k") as folder:
        (folder / "features.npy").write_bytes(b"half")
        raise RuntimeError("stop")
    assert list(cache.iterdir()) == []
    script = textwrap.dedent(
        """
        import os, signal
        from imprint.evals import feature_cache
        with feature_cache.entry("k") as folder:
            (folder / "features.npy").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert feature_cache.load("k") is None
    assert [p.name[:7] for p in cache.iterdir()] == [".aside-"]
    for path in cache.iterdir():
        os.utime(path, (1, 1))
        for inner in path.iterdir():
            os.utime(inner, (1, 1))
    with feature_cache.entry("other") as folder:
        np.save(folder / "index.npy", np.arange(2))
    assert sorted(p.name for p in cache.iterdir()) == ["other"]


KILLED = """
import os, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from conftest import CLASSES, TinyEncoder, blobs
from imprint.data.arrays import ArraySource
from imprint.evals import feature_part
from imprint.evals.features import extract

class Mortal(TinyEncoder):
    def encode(self, *args):
        if self.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(*args)

Mortal.__name__ = "TinyEncoder"
feature_part.KEEP_SECONDS = 0.0
extract(Mortal(), ArraySource(*blobs(240, 1), classes=CLASSES, name="train"), device="cpu", batch_size=32)
"""


def test_killed_extraction_goes_on_where_it_was(tiny, train, cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent)], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    (aside,) = cache.iterdir()
    assert aside.name.startswith(".aside-") and json.loads((aside / "progress.json").read_text()) == {
        "done": 128,
        "seen": 128,
    }
    # the rows that are there are believed, not made again
    rows = np.load(aside / "features.npy", mmap_mode="r+")
    rows[0] = 7.0
    rows.flush()
    del rows
    table = extract(tiny, train, device="cpu", batch_size=32)
    assert tiny.calls == 4 and (table.features_ND[0] == 7).all()
    want = extract(tiny, train, device="cpu", batch_size=32, cache=False)
    np.testing.assert_array_equal(table.features_ND[1:], want.features_ND[1:])
    np.testing.assert_array_equal(table.index_N, np.arange(240))
    (entry,) = cache.iterdir()
    assert sorted(p.name for p in entry.iterdir()) == ["features.npy", "index.npy"]


def test_unusable_remains_of_a_killed_writer_are_made_again(tiny, train, cache: Path, monkeypatch) -> None:
    want = extract(tiny, train, device="cpu", cache=False).features_ND
    extract(tiny, train, device="cpu")
    (entry,) = cache.iterdir()
    for damage in ("{", '{"done": 9}', '{"done": 5, "seen": 5}', '{"done": -1, "seen": 3}'):
        aside = cache / f".aside-{entry.name}"
        aside.mkdir()
        (aside / "progress.json").write_text(damage)
        np.save(aside / "features.npy", np.zeros((10, 6), np.float32))  # of another length
        np.save(aside / "rows.npy", np.zeros(10, np.int64))
        shutil.rmtree(entry)
        assert np.array_equal(extract(tiny, train, device="cpu").features_ND, want)


def test_two_writers_of_one_entry_do_not_share_a_folder(cache: Path) -> None:
    with feature_cache.entry("k") as mine:
        with feature_cache.entry("k") as other:
            assert mine != other
            np.save(other / "index.npy", np.arange(2))
        np.save(mine / "index.npy", np.arange(2))
        (mine / "progress.json").write_text("{}")
    assert [p.name for p in cache.iterdir()] == ["k"] and [p.name for p in (cache / "k").iterdir()] == ["index.npy"]


def test_old_entries_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_CACHE_GB", "0.000012")
    for age, name in enumerate(("a", "b", "c")):
        with feature_cache.entry(name) as folder:
            np.save(folder / "index.npy", np.zeros(700, np.int64))
        if (cache / name).exists():
            os.utime(cache / name, (age + 1, age + 1))
    assert sorted(p.name for p in cache.iterdir()) == ["b", "c"] or sorted(p.name for p in cache.iterdir()) == ["c"]
    assert (cache / "c").is_dir() and not (cache / "a").exists()


def test_damaged_images_are_left_out_and_rows_stay_aligned(tiny, tmp_path: Path) -> None:
    import cv2

    from imprint.data.sources import open_source

    for name in ("x", "y"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(30):
            shade = np.full((8, 8, 3), 8 * i + (4 if name == "y" else 0), np.uint8)
            cv2.imwrite(str(tmp_path / "data" / name / f"{i:02d}.png"), shade)
    (tmp_path / "data" / "x" / "05.png").write_bytes(b"no image at all")
    source = open_source(tmp_path / "data")
    table = extract(tiny, source, normalise=PLAIN, device="cpu", batch_size=7)
    assert len(table) == 59 and table.tensor.shape[0] == 59
    assert not any("05.png" in n and "x" in Path(n).parts for n in table.names)
    for row in (0, 10, 40, 58):
        shade = 8 * int(Path(table.names[row]).stem) + (4 if table.labels_N[row] == 1 else 0)
        image = torch.full((1, 3, 8, 8), shade / 255.0)
        tiny.eval()
        with torch.no_grad():
            torch.testing.assert_close(table.tensor[row : row + 1], tiny.encode(image).pooled_BD, rtol=1e-3, atol=1e-3)


def test_devices_and_views(tiny, train) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'cuda'"):
        extract(tiny, train, device="cudda", cache=False)
    assert evaluation_view(32).crop.resize == 32
    assert evaluation_view(224).crop.resize == 256
    with pytest.raises(DataError, match="empty"):
        extract(tiny, train.subset(np.arange(0)), device="cpu")


def test_sixteen_bit_single_channel(tmp_path: Path) -> None:
    from imprint.evals.pixels import PixelEncoder

    images = np.random.default_rng(0).integers(0, 65536, (5, 8, 8, 1)).astype(np.uint16)
    table = extract(PixelEncoder(8, 1), ArraySource(images), normalise=PLAIN, device="cpu")
    np.testing.assert_allclose(table.features_ND, images.reshape(5, -1) / 65535.0, atol=1e-4)


def test_channels_that_the_encoder_does_not_take_are_left_out_aloud(tiny, caplog) -> None:
    rng = np.random.default_rng(0)
    four = rng.integers(0, 255, (6, 32, 32, 4), dtype=np.uint8)
    with caplog.at_level("WARNING"):
        table = extract(tiny, ArraySource(four), normalise=PLAIN, workers=1, device="cpu")
    assert "4 channels and the encoder takes the first 3 only" in caplog.text
    want = extract(tiny, ArraySource(four[..., :3].copy()), normalise=PLAIN, workers=1, device="cpu")
    torch.testing.assert_close(table.tensor, want.tensor)
