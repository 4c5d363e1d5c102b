import json

import pytest

from imprint.core.codec import from_json, to_json
from imprint.core.errors import ConfigError
from imprint.methods.catalog import CATALOG, method_class
from imprint.recipes.book import recipe, recipes_of
from imprint.train.config import RunConfig

ALL = [f"{row.name}/{name}" for row in CATALOG for name in recipes_of(row.name)]


@pytest.mark.parametrize("spec", ALL)
def test_every_recipe_is_a_complete_config_that_survives_json(spec):
    config = recipe(spec)
    method, _, name = spec.partition("/")
    assert (config.name, config.recipe) == (method, name)
    data = json.loads(json.dumps(to_json(config)))
    again = from_json(RunConfig, data, types_of={"method": method_class(method).Config})
    assert again == config


@pytest.mark.parametrize("row", CATALOG, ids=lambda r: r.name)
def test_every_method_has_the_three_recipes_and_the_paper_one_says_where_it_comes_from(row):
    assert {"paper", "small", "debug"} <= set(recipes_of(row.name))
    provenance = recipe(f"{row.name}/paper").provenance
    assert row.arxiv in provenance.source and provenance.expected
    assert recipe(f"{row.name}/small").batch_size <= 256
    assert all(recipe(f"{row.name}/{name}").probe_every is not None for name in ("paper", "small"))


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("size", [32, 96, 224])
def test_recipes_fit_the_image_size(spec, size):
    config = recipe(spec, image_size=size)
    assert config.encoder.image_size == size
    patch = config.encoder.patch_size
    if patch is not None:
        sizes = [v.crop.size for v in method_class(config.name).views(config.method, size)]
        assert all(s % patch == 0 for s in sizes), (patch, sizes)


def test_names_are_checked():
    assert recipe("dino").recipe == "small"
    with pytest.raises(ConfigError, match="Did you mean 'dino'"):
        recipe("dnio")
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        recipe("dino/papr")
