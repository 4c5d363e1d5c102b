"""Options of recipes of several stages: `--stage-2.optim.lr.base 0.1` addresses one, without prefix all of them.

Short options take the prefix as well (`--stage-1.epochs 100`, `--stage-3.encoder resnet18`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imprint.cli import fields, overrides, resolve
from imprint.cli.overrides import Pair
from imprint.cli.parser import Parser, unknown_option
from imprint.core.errors import ConfigError, unknown

if TYPE_CHECKING:
    from imprint.train.config import RunConfig

Stages = tuple["RunConfig", ...]
_ADDRESSED = re.compile(r"stage[-_](\d+)\.(.+)")


def addressed(name: str) -> tuple[int | None, str]:
    """Part `stage-2.optim.lr.base` into (2, `optim.lr.base`); (None, name) for a name without a stage."""
    match = _ADDRESSED.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def check_names(pairs: Sequence[Pair], method: str | None, short: Sequence[str], prog: str) -> None:
    """Refuse names that are no options; those of `--stage-N.method` are checked when the stage's method is known.

    Raises:
        ConfigError: naming the nearest option.
    """
    known = fields.fields(method)[0]
    overrides.check_names([p for p in pairs if addressed(p[0])[0] is None], known, short, prog)
    for name, values in pairs:
        number, bare = addressed(name)
        if number is None or bare.startswith(("method.", "no-method.")) or bare.replace("-", "_") in resolve.SHORT:
            continue
        try:
            overrides.check_names(
                [(bare, values)], known, tuple(f"--{s.replace('_', '-')}" for s in resolve.SHORT), prog
            )
        except ConfigError as problem:
            raise ConfigError(str(problem).replace("'--", f"'--stage-{number}.")) from None


def _check_own(pairs: Sequence[Pair], known: Sequence[fields.Field], number: int | None, prog: str) -> None:
    try:
        overrides.check_names(pairs, known, (), prog)
    except ConfigError as problem:
        text = str(problem)
        raise ConfigError(text if number is None else text.replace("'--", f"'--stage-{number}.")) from None


def with_short(stages: Stages, short: Mapping[str, Any]) -> Stages:
    """Return the stages with the short options set: each in every stage where it makes sense.

    `encoder` changes the stages that share the first one's encoder; `budget` is split by `RunConfig.share`.

    Raises:
        ConfigError: for `epochs` and `steps`, which do not say which stage they mean; see `resolve.with_short`.
    """
    if len(stages) == 1:
        return (resolve.with_short(stages[0], short),)
    given = {name: value for name, value in short.items() if value is not None}
    for name in ("epochs", "steps"):
        if name in given:
            raise ConfigError(
                f"--{name} does not say which of the {len(stages)} stages ({', '.join(s.stage for s in stages)}) it "
                f"means; give --stage-1.{name}, --stage-2.{name} and so on, or --budget TIME for all."
            )
    budget = given.pop("budget", None)
    first = stages[0].encoder
    changed = []
    for stage in stages:
        own = {name: value for name, value in given.items() if name != "encoder" or stage.encoder == first}
        changed.append(resolve.with_short(stage, own))
    if budget is None:
        return tuple(changed)
    from imprint.train.stages import split_budget

    return split_budget(tuple(changed), budget)


def apply_words(stages: Stages, pairs: Sequence[Pair], arguments: Callable[[Parser], None], prog: str) -> Stages:
    """Return the stages with dotted and addressed options set; an option without prefix goes to all that have it.

    A group that a stage leaves out (`data.labelled` of a stage that uses no labels) is such a field only where it is
    addressed by its stage.

    Args:
        stages: what the recipe says.
        pairs: names and words.
        arguments: declares the short options, for those with a prefix.
        prog: for messages.

    Raises:
        ConfigError: for a stage that there is not, a name that is no option, or a value that does not fit.
    """
    result = list(stages)
    for name, _ in pairs:
        number, bare = addressed(name)
        if number is not None and not 1 <= number <= len(stages):
            what = f"{len(stages)} stages" if len(stages) > 1 else "one stage, whose options have no prefix"
            raise ConfigError(f"'--{name}': there is no stage {number}; this recipe has {what}.")
        if (
            number is None
            and len(stages) > 1
            and not any(overrides.reaches(s, bare.removeprefix("no-")) for s in stages)
        ):
            raise unknown_option(f"--{name}", [f"--{n}" for s in stages for n in fields.names(s.name)], prog)
    for place, stage in enumerate(stages):
        own: list[Pair] = []
        short: list[str] = []
        for name, values in pairs:
            number, bare = addressed(name)
            if number == place + 1 and bare.replace("-", "_") in resolve.SHORT:
                short += [f"--{bare}", *values]
            elif number == place + 1 or (
                number is None and (len(stages) == 1 or overrides.reaches(stage, bare.removeprefix("no-")))
            ):
                own.append((bare, values))
        known = fields.fields(stage.name)[0]
        _check_own(own, known, place + 1 if len(stages) > 1 else None, f"{prog} {stage.name}")
        if short:
            parser = Parser(prog, "")
            arguments(parser)
            parsed = parser.parse(short)
            stage = resolve.with_short(stage, {name: getattr(parsed, name) for name in resolve.SHORT})
        result[place] = overrides.apply_words(stage, own, known)
    return tuple(result)


def apply_values(stages: Stages, values: Mapping[str, Any]) -> Stages:
    """Return the stages with Python values set, addressed as `stage_2={"optim": ...}` or `{"stage-2.batch_size": 64}`.

    Raises:
        ConfigError: see `apply_words`.
    """
    if len(stages) == 1:
        return (overrides.apply_values(stages[0], values),)
    result = list(stages)
    for key, value in flat(values).items():
        number, bare = addressed(key)
        places = [i for i, s in enumerate(result) if (number is None and overrides.reaches(s, bare)) or number == i + 1]
        if not places:
            known = [n.replace("-", "_") for s in stages for n in fields.names(s.name)]
            raise unknown("field of the stages", key, known if number is None else [f"stage_{len(stages)}.{bare}"])
        for i in places:
            result[i] = overrides.apply_values(overrides.opened(result[i], [bare]), {bare: value})
    return tuple(result)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def short_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the short options of a parsed command line by name."""
    return {name: getattr(args, name) for name in resolve.SHORT}
