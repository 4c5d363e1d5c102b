"""Few labels: the subsets are balanced, kept and usable again, and each part is the engine's own result."""

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.evals.evaluate import _flags, evaluate
from imprint.evals.finetune import Finetune
from imprint.evals.linear import Linear
from imprint.evals.semi import FewLabelsConfig, SemiConfig, parts
from imprint.evals.workspace import Workspace

FAST = {"device": "cpu", "workers": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_shares_counts_and_draws(train):
    found = parts(train, SemiConfig(shares=(0.1, 0.5), draws=2))
    assert [(p.size, p.seed) for p in found] == [("10%", 0), ("10%", 1), ("50%", 0), ("50%", 1)]
    sizes = np.bincount(train.labels)
    assert np.array_equal(np.bincount(train.labels[found[0].picked]), np.floor(sizes * 0.1 + 0.5))
    assert set(found[0].picked) < set(found[2].picked) and set(found[0].picked) != set(found[1].picked)
    (counted,) = parts(train, SemiConfig(per_class=(7,)))
    assert np.bincount(train.labels[counted.picked]).tolist() == [7] * 4 and counted.size == "7 per class"


def test_probes_of_several_draws_have_a_mean_and_their_files_give_them_again(tiny, train, test, tmp_path):
    options = {"engine": "linear", "linear": {"epochs": 5, "lrs": (0.1,)}} | FAST
    report = evaluate("semi", tiny, train, test, per_class=(5, 20), draws=3, save=str(tmp_path / "lists"), **options)
    assert report.main == "5 per class/top1" and report.metrics[report.main].n == 3
    draws = report.details["draws"]["20 per class"]
    values = [draw["metrics"]["top1"]["value"] for draw in draws]
    assert report.metrics["20 per class/top1"].value == pytest.approx(np.mean(values))
    assert report.metrics["20 per class/top1"].low < np.mean(values)
    file = tmp_path / "lists" / "20_per_class-seed1.txt"
    assert draws[1]["subset"] == {"file": str(file), "lists": "names", "images": 80}
    again = evaluate("semi", tiny, train, test, subset=str(file), seed=1, **options)
    assert again.metrics["subset/top1"].value == values[1] and again.main == "subset/top1"


def test_a_list_that_was_rewritten_after_a_kill_is_another_part(tiny, train, test, tmp_path, monkeypatch):
    file = tmp_path / "list.txt"
    options = {"subset": str(file), "engine": "linear", "linear": {"epochs": 5, "lrs": (0.1,)}} | FAST
    monkeypatch.setattr(Workspace, "clear", lambda self: None)  # the kill comes after the part was remembered
    counts = []
    for rows in (range(0, 240, 2), range(0, 240, 6)):
        file.write_text("".join(f"{i}\n" for i in rows))
        report = evaluate("semi", tiny, train, test, **options)
        counts.append((report.details["draws"]["subset"][0]["cost"]["images"], len(rows) + len(test)))
    assert all(seen == expected for seen, expected in counts)


def test_a_part_is_what_the_engine_gives_for_it(tiny, train, test):
    report = evaluate("semi", tiny, train, test, shares=(0.5,), engine="logreg", **FAST)
    (part,) = parts(train, SemiConfig(shares=(0.5,)))
    alone = evaluate("logreg", tiny, train.subset(part.picked), test, **FAST)
    assert report.metrics["50%/top1"] == alone.metrics["top1"]
    assert report.details["draws"]["50%"][0]["per_class_top1"] == alone.details["per_class_top1"]


def test_the_whole_network_is_fine_tuned_and_a_killed_one_goes_on(monkeypatch, cache):
    arch = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=8, patch_size=4, arch=arch)
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = (rng.integers(0, 60, (96, 8, 8, 3)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    train, test = ArraySource(images[:64], labels[:64]), ArraySource(images[64:], labels[64:])
    options = {"per_class": (4, 12), "finetune": {"epochs": 12, "lr": 5e-2, "minibatch": 12}} | FAST
    whole = evaluate("semi", encoder, train, test, **options)
    assert whole.metrics["12 per class/top1"].value > 60
    ran = []
    run = Finetune.run

    def dying(self, encoder, data, config=None):
        ran.append(len(data.train))
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(self, encoder, data, config)

    monkeypatch.setattr(Finetune, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate("semi", encoder, train, test, **options)
    again = evaluate("semi", encoder, train, test, **options)
    assert ran == [12, 36, 36] and again.metrics == whole.metrics
    assert not list((cache / "evaluations").iterdir())


def test_shared_options_reach_the_engine_unless_it_has_its_own(tiny, train, test, monkeypatch):
    seen = []
    run = Linear.run

    def watching(self, encoder, data, config=None):
        seen.append((config.batch_size, config.tokens, config.seed))
        return run(self, encoder, data, config)

    monkeypatch.setattr(Linear, "run", watching)
    linear = {"epochs": 1, "lrs": (0.1,), "tokens": "cls"}
    evaluate("semi", tiny, train, test, shares=(0.2,), engine="linear", linear=linear, batch_size=7, seed=3, **FAST)
    assert seen == [(7, "cls", 3)]


def test_the_command_that_repeats_it_names_the_engines_options():
    config = SemiConfig(finetune=FewLabelsConfig(epochs=12, layer_decay=0.9), shares=(0.2,), save="here")
    words = _flags(config, ["finetune", "shares", "save"])
    assert words == ["--finetune.epochs", "12", "--finetune.layer-decay", "0.9", "--shares", "0.2", "--save", "here"]


def test_what_cannot_work_is_refused(tiny, train, test, unlabelled, tmp_path):
    with pytest.raises(DataError, match="has no labels|needs labels"):
        evaluate("semi", tiny, unlabelled, test, **FAST)
    with pytest.raises(DataError, match="fewer than the 900"):
        evaluate("semi", tiny, train, test, per_class=(900,), engine="linear", **FAST)
    (tmp_path / "list.txt").write_text("nobody.png\n")
    with pytest.raises(DataError, match=r"names 1 images .* 'nobody.png'"):
        evaluate("semi", tiny, train, test, subset=str(tmp_path / "list.txt"), engine="linear", **FAST)
    for bad, said in (
        ({"shares": (0.0,)}, "1 % of every class"),
        ({"draws": 0}, "at least one draw"),
        ({"engine": "lin"}, "engine is finetune"),
        ({"subset": "x", "draws": 2}, "one draw"),
        ({"shares": ()}, "nothing is asked for"),
    ):
        with pytest.raises(ConfigError, match=said):
            SemiConfig(**bad)
    assert FewLabelsConfig().mixup == 0 and FewLabelsConfig().lr == 5e-4
