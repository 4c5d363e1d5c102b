"""The options are read off the source; these tests hold them against the classes themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re

import pytest
import tyro

from imprint.cli import fields
from imprint.cli.overrides import _duration_rule, opened
from imprint.core.errors import ConfigError
from imprint.evals import catalog as protocols
from imprint.methods import catalog
from imprint.recipes.book import stages_of


def offered_by_tyro(default: object) -> set[str]:
    """The options that tyro derives from the real types."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_duration_rule)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        tyro.cli(
            type(default),
            default=default,
            args=["--help"],
            registry=registry,
            config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
        )
    return set(re.findall(r"^\W*--([a-z][a-z0-9.-]*)(?=\s)", out.getvalue(), re.MULTILINE)) - {"help"}


@pytest.mark.parametrize("method", catalog.names())
def test_the_listing_is_what_tyro_reads(method: str) -> None:
    fixed = {"name", "recipe", "stage", "provenance.source", "provenance.expected", "provenance.deviations"}
    for config in stages_of(f"{method}/small"):
        names = fields.names(config.name)  # a stage may be of another method
        whole = opened(config, [name for name in names if name.startswith(("data.labelled.", "data.text."))])
        assert set(names) == offered_by_tyro(whole) - fixed


@pytest.mark.parametrize("protocol", protocols.names())
def test_the_protocols_listing_is_what_tyro_reads(protocol: str) -> None:
    config = protocols.protocol_class(protocol).Config()
    assert {field.name for field in fields.protocol_fields(protocol)} == offered_by_tyro(config)


@pytest.mark.parametrize("method", catalog.names())
def test_defaults_are_those_of_the_class(method: str) -> None:
    config = catalog.method_class(method).Config()
    plain = {f.name.removeprefix("method."): f for f in fields.fields(method)[0] if f.group == "method"}
    for field in dataclasses.fields(config):
        shown = plain.get(field.name.replace("_", "-"))
        value = getattr(config, field.name)
        if shown is not None and isinstance(value, (bool, int, float, tuple, str, type(None))):
            assert shown.default == (value if isinstance(value, str) else repr(value))


@pytest.mark.parametrize("method", catalog.names())
def test_every_option_says_what_it_is(method: str) -> None:
    found, groups = fields.fields(method)
    silent = [item.name for item in (*found, *groups) if not item.help]
    assert not silent, f"no line under Attributes for {silent}"
    assert [item.name for item in found if not item.kind] == []


def test_durations_and_choices_are_shown_as_they_are_typed() -> None:
    found = {field.name: field for field in fields.fields("dino")[0]}
    assert found["checkpoint-every"].default == "1ep"
    assert found["method.freeze-prototypes"].kind == "duration"
    assert found["optim.name"].kind == "adamw|adam|sgd|rmsprop|lars"
    assert found["method.momentum.start"].group == "method.momentum"


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'simclr'"):
        fields.fields("simcrl")
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        fields.protocol_fields("liner")


def test_without_a_method_its_own_fields_are_left_out() -> None:
    assert not [name for name in fields.names() if name.startswith("method.")]
    assert "optim.lr.base" in fields.names()
