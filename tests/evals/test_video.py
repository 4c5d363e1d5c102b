"""Label propagation as a protocol: against a plain queue, on moving squares, killed, and refused."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imprint.cli.main import main
from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.davis import open_videos
from imprint.evals.evaluate import evaluate
from imprint.evals.protocol import EvalData
from imprint.evals.video import PRESETS, VideoConfig, carried
from imprint.evals.video import Video as Protocol
from imprint.evals.video_frames import Eyes, patch_labels
from imprint.evals.video_report import first_mask, full_size, ids_of
from imprint.ops.label_propagation import propagate, stretched

OPTIONS = {"image_size": 48, "device": "cpu", "batch_size": 3}


def plain(report) -> str:
    return json.dumps(
        {k: v for k, v in json.loads(report.to_json()).items() if k not in ("cost", "command")}, sort_keys=True
    )


def test_presets_are_the_published_numbers() -> None:
    assert VideoConfig().settled() == PRESETS["dino"]
    dino, crw = PRESETS["dino"], VideoConfig(preset="crw").settled()
    assert (dino.frames, dino.topk, dino.radius, dino.temperature, dino.window) == (7, 5, 12, 0.1, "square")
    assert (crw.frames, crw.topk, crw.radius, crw.temperature, crw.window) == (20, 10, 12, 0.05, "disc")
    assert VideoConfig(preset="crw", topk=3).settled().topk == 3
    with pytest.raises(ConfigError, match="topk at least 1"):
        VideoConfig(topk=0)


@pytest.mark.parametrize("preset", ["dino", "crw"])
@pytest.mark.parametrize("frames", [0, 2, 50])
def test_the_ring_equals_a_plain_queue(patches, videos: Path, preset: str, frames: int) -> None:
    clip = open_videos(videos, ["near"]).sequences[0]
    config = VideoConfig(preset=preset, frames=frames, radius=2, **OPTIONS)
    how, eyes = config.settled(), Eyes(patches, Normalise(), config)
    ids, objects = first_mask(clip)
    maps = [torch.nn.functional.normalize(eyes.look([clip.frame(i)])[0], dim=-1) for i in range(len(clip))]
    first = patch_labels(ids, objects, *maps[0].shape[:2], shares=False)
    queue: deque = deque(maxlen=frames)
    for i, _, got in carried(clip, ids, objects, eyes, how):
        context = [(maps[0], first), *queue]
        soft = propagate(
            maps[i], torch.stack([m for m, _ in context]), torch.stack([s for _, s in context]),
            topk=how.topk, radius=2, temperature=how.temperature, window=how.window, first_anywhere=how.first_anywhere,
        )  # fmt: skip
        queue.append((maps[i], soft))
        large = full_size(soft, *clip.shape)
        want = ids_of(stretched(large) if how.stretch else large, objects)
        assert (got == want).mean() > 0.999  # ties of equal patches may fall otherwise


def test_moving_squares_are_followed(patches, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "video.json"
    report = evaluate("video", patches, videos, out=out, masks_out=str(tmp_path / "masks"), **OPTIONS)
    assert report.main == "jf" and report.metrics["jf"].value > 85 and report.metrics["jf"].n == 3
    assert report.metrics["j_recall"].value == 100
    assert report.details["objects"] == 4 and list(report.details["sequences"]["near"]["objects"]) == ["1", "2"]
    assert report.details["sequences"]["near"]["frames"] == 6  # neither the first nor the last of 8
    assert report.details["over_time"]["sequences"] == [3, 3, 3, 3, 2, 1]
    assert [f.name for f in report.figures] == ["over_time", "strip_00", "strip_01", "strip_02"]
    assert sorted(p.name for p in (tmp_path / "video_figures").iterdir()) == [f"{f.name}.png" for f in report.figures]
    objects = [o for s in report.details["sequences"].values() for o in s["objects"].values()]
    mean = np.mean([(o["j_mean"] + o["f_mean"]) / 2 for o in objects])
    assert report.metrics["jf"].value == pytest.approx(mean, abs=1e-3)
    # What was written has the layout and the numbers of the annotation.
    masks = sorted((tmp_path / "masks" / "near").iterdir())
    assert len(masks) == 7 and Image.open(masks[0]).mode == "P"
    assert set(np.unique(np.asarray(Image.open(masks[0])))) == {0, 1, 2}


def test_killed_evaluation_goes_on_with_the_next_sequence(patches, videos: Path) -> None:
    config = VideoConfig(**OPTIONS, seed=4)
    data = EvalData(train=open_videos(videos))
    want = plain(Protocol().run(patches, data, config))
    whole = patches.calls
    patches.calls, patches.fail_at = 0, 4  # inside the second sequence
    with pytest.raises(KeyboardInterrupt):
        Protocol().run(patches, data, config)
    patches.calls = patches.fail_at = 0
    assert plain(Protocol().run(patches, data, config)) == want
    assert patches.calls < whole
    patches.calls = 0
    assert plain(Protocol().run(patches, data, config)) == want and patches.calls == whole  # nothing is left behind


def test_pixels_and_one_sequence(videos: Path) -> None:
    report = evaluate("video", "pixels", videos, sequences=["far2"], pixel_patch=4, cache=False, **OPTIONS)
    assert report.metrics["jf"].value > 60 and report.metrics["jf"].low is None
    assert "--sequences far2" in report.command and "--pixel-patch 4" in report.command


def test_unsuited_input_is_refused(patches, videos: Path, train) -> None:
    with pytest.raises(ConfigError, match="one folder or zip"):
        evaluate("video", patches, [str(videos), str(videos)])
    with pytest.raises(DataError, match="does not exist"):
        evaluate("video", patches, "cifar10")
    for path in (videos / "Annotations" / "48p" / "near").iterdir():
        if path.stem != "0":
            path.unlink()
    with pytest.raises(DataError, match="'near' has no mask but the one of frame 0"):
        evaluate("video", patches, videos, **OPTIONS)
    Image.fromarray(np.zeros((48, 72), np.uint8)).save(videos / "Annotations" / "48p" / "near" / "0.png")
    with pytest.raises(DataError, match="shows no object"):
        evaluate("video", patches, videos, **OPTIONS)


def test_command_line(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        f"evaluate video --encoder random:resnet10t --train {videos} --stage -2 --image-size 64 --preset crw --radius 3"
    )
    assert (
        main([*words.split(), "--sequences", "far2", "near", "--device", "cpu", "--out", str(tmp_path / "r.json")]) == 0
    )
    assert "* jf" in capsys.readouterr().out
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["details"]["settings"]["stage"] == -2 and list(saved["details"]["sequences"]) == ["near", "far2"][::-1]
    assert saved["details"]["propagation"] == {**vars(PRESETS["crw"]), "radius": 3}
