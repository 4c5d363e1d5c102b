import json

import pytest

from imprint.core.codec import from_json, to_json
from imprint.core.errors import ConfigError
from imprint.methods.catalog import CATALOG, method_class, names
from imprint.recipes.book import recipe, recipes_of, stages_of
from imprint.train.config import RunConfig

ALL = [f"{row.name}/{name}" for row in CATALOG for name in recipes_of(row.name)]


@pytest.mark.parametrize("spec", ALL)
def test_every_recipe_is_a_complete_config_that_survives_json(spec):
    method, _, name = spec.partition("/")
    for config in stages_of(spec):
        assert config.recipe == name and config.name in names()
        data = json.loads(json.dumps(to_json(config)))
        again = from_json(RunConfig, data, types_of={"method": method_class(config.name).Config})
        assert again == config
    assert config.name == method  # what a recipe ends with is what it is called


@pytest.mark.parametrize("spec", ALL)
def test_stages_have_titles_and_start_from_an_earlier_one(spec):
    stages = stages_of(spec)
    if len(stages) == 1:
        assert (stages[0].stage, stages[0].start) == ("", None)
        return
    titles = [stage.stage for stage in stages]
    assert all(titles) and len(set(titles)) == len(titles) and stages[0].start is None
    for number, stage in enumerate(stages[1:], 2):
        assert stage.start in [f"../stage-{earlier}" for earlier in range(1, number)]
    with pytest.raises(ConfigError, match="stages"):
        recipe(spec)


@pytest.mark.parametrize("row", CATALOG, ids=lambda r: r.name)
def test_every_method_has_the_three_recipes_and_the_paper_one_says_where_it_comes_from(row):
    assert {"paper", "small", "debug"} <= set(recipes_of(row.name))
    for stage in stages_of(f"{row.name}/paper"):
        assert row.arxiv in stage.provenance.source and stage.provenance.expected
    assert all(stage.batch_size <= 256 for stage in stages_of(f"{row.name}/small"))
    for name in ("paper", "small"):
        assert all(stage.probe_every is not None for stage in stages_of(f"{row.name}/{name}"))


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("size", [32, 96, 224])
def test_recipes_fit_the_image_size(spec, size):
    stages = stages_of(spec, image_size=size)
    assert size in {config.encoder.image_size for config in stages}  # a stage may be finer or coarser than the others
    for config in stages:
        patch = config.encoder.patch_size
        if patch is not None:
            cls, side = method_class(config.name), config.encoder.image_size
            views = cls.clips(config.method, side) or cls.views(config.method, side)
            sizes = [v.crop.size for v in views]
            assert all(s % patch == 0 for s in sizes), (patch, sizes)


def test_names_are_checked():
    assert recipe("dino").recipe == "small"
    with pytest.raises(ConfigError, match="Did you mean 'dino'"):
        recipe("dnio")
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        recipe("dino/papr")
