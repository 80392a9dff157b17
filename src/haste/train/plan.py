"""Which runs a comparison has: every system with every seed, sparsity and variation, and the settings of each."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from haste.config import Config
from haste.nn.transformer import transformer_width
from haste.train.given_data import load_given
from haste.train.preset import flatten
from haste.train.progress import print_line
from haste.train.systems import SYSTEMS, Shared, Sizes, settings_of

_DIAGNOSTICS = 40  # times a run
# Settings that mean nothing to a layer in which every label reads every feature.
_OF_LINKS = (
    "output.fan_in",
    "output.group_size",
    "output.block",
    "output.duplicates",
    "output.inputs",
    "output.head_ratio",
    "output.grouping",
    "output.regroup",
    "output.frequencies",
    "output.private_features",
    "optim.output.sparsity",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare.

    config: settings that all runs share
    systems: names in `SYSTEMS`
    seeds: each system is trained with each
    sparsities: of sparse systems, and of the HASTE whose size a bottleneck has; None = as config says
    vary: dotted keys and values that change together, each a run of its own beside the system without them
    settings: system -> dotted keys that win over the system's own
    """

    config: Config
    systems: Sequence[str]
    seeds: Sequence[int] = (0,)
    sparsities: Sequence[float | None] = (None,)
    vary: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that is to be there in the end.

    name: of its folder
    system: name in `SYSTEMS`
    sparsity: that was asked for, where it decides the size
    change: the varied settings, "key=value", joined by +; "" = none
    own: dotted keys that were set for this system alone
    config: all of its settings
    """

    name: str
    system: str
    sparsity: float | None
    change: str
    own: Mapping[str, Any]
    config: Config

    @property
    def describe(self) -> str:
        """For people: system, sparsity, change and seed."""
        parts = [SYSTEMS[self.system].title, "" if self.sparsity is None else f"{100 * self.sparsity:g} %", self.change]
        return ", ".join([*filter(None, parts), f"seed {self.config.run.seed}"])


def prepare_sizes(config: Config, seeds: Sequence[int], log: Callable[[str], None] = print_line) -> Sizes:
    """Make the data of all seeds ready, so that no run measures the making, and return its sizes.

    Raises:
        ValueError: data that cannot be used, or an encoder that this version does not train.
    """
    sizes = None
    for seed in dict.fromkeys(seeds):
        seeded = replace(config, run=replace(config.run, seed=seed))
        dataset = load_given(seeded, log=log if sizes is None else lambda line: None)
        if dataset.dev is None and dataset.test is None:
            raise ValueError(
                f"data.path ({config.data.path}) must have dev or test documents to compare systems on; add some, or "
                "set data.dev_fraction"
            )
        if sizes is None:
            encoder = config.encoder
            inputs = transformer_width(encoder.name or "") if encoder.kind == "transformer" else dataset.num_inputs
            sizes = Sizes(inputs=inputs, labels=dataset.labels.num_labels, documents=len(dataset.train))
    assert sizes is not None
    return sizes


def planned_runs(plan: Plan, sizes: Sizes, output: Path, log: Callable[[str], None] = print_line) -> list[Planned]:
    """Every run of a plan, seed by seed, so that all systems are there early; equal ones once, and said.

    Raises:
        ValueError, TypeError: a setting that cannot be, with the run that would have it.
    """
    found: dict[str, Planned] = {}
    seen: dict[str, str] = {}
    lines: dict[str, None] = {}
    for seed in plan.seeds:
        for name in plan.systems:
            for sparsity in plan.sparsities if SYSTEMS[name].sized else (None,):
                for varied in ({}, *_variations(plan, name, lines)):
                    run = _planned(plan, sizes, output, seed, name, sparsity, varied)
                    same = json.dumps([name, _effective(run.config)])
                    if same not in seen:
                        found[run.name] = run
                    elif run.name not in found:
                        lines[f"{run.name}: nothing would be other than in {seen[same]}; not run"] = None
                    seen.setdefault(same, run.name)
    for line in lines:
        log(line)
    return list(found.values())


def _planned(
    plan: Plan,
    sizes: Sizes,
    output: Path,
    seed: int,
    name: str,
    sparsity: float | None,
    varied: Mapping[str, Any],
) -> Planned:
    change = "+".join(f"{key}={shown(value)}" for key, value in varied.items())
    slug = re.sub(r"[^\w.=+-]", "_", "-".join(_words(name, sparsity, change, seed)))
    own = plan.settings.get(name, {})
    changes = {**own, **_changes(varied)}
    steps = Shared(config=plan.config, sizes=sizes, given=changes).steps
    every = max(1, steps // _DIAGNOSTICS)
    run = replace(plan.config.run, seed=seed, dir=str(output / "runs" / slug), diagnostics_every=every)
    shared = Shared(config=replace(plan.config, run=run), sizes=sizes, sparsity=sparsity)
    try:
        config = settings_of(SYSTEMS[name], shared, changes)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{slug}: {error}") from None
    return Planned(name=slug, system=name, sparsity=sparsity, change=change, own=own, config=config)


def _variations(plan: Plan, name: str, lines: dict[str, None]) -> list[Mapping[str, Any]]:
    """Variations of a system: those of links are not for a layer that has none, which `lines` then say."""
    if SYSTEMS[name].sparse:
        return list(plan.vary)
    found: list[Mapping[str, Any]] = []
    for varied in plan.vary:
        kept = {key: value for key, value in varied.items() if not _of_links(key)}
        if kept:
            found.append(kept)
        dropped = [f"{key}={shown(value)}" for key, value in varied.items() if key not in kept]
        if dropped:
            lines[f"{name}: {', '.join(dropped)} means nothing to a layer without links; not varied"] = None
    return found


def _of_links(key: str) -> bool:
    return key in _OF_LINKS or key.startswith("rewire.")


def _effective(config: Config) -> dict[str, Any]:
    """The settings, flat, without those that do nothing in this run: two runs that have the same are the same."""
    idle = {
        "rewire.": config.rewire.interval == 0,
        "auxiliary.": config.auxiliary.clusters == 0,
        "output.activation": config.output.intermediate == 0,
        "run.dir": True,
        "run.diagnostics_every": True,
    }
    dense = config.output.fan_in == 0
    return {
        key: value
        for key, value in flatten(config.to_dict()).items()
        if not any(key.startswith(start) for start, unused in idle.items() if unused) and not (dense and _of_links(key))
    }


def _changes(varied: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variation; regrowing nothing is never rewiring."""
    never = {"rewire.interval": 0} if varied.get("rewire.regrow") == "none" else {}
    return {key: value for key, value in varied.items() if key != "rewire.regrow" or not never} | never


def _words(name: str, sparsity: float | None, change: str, seed: int) -> list[str]:
    return [name, *([f"{100 * sparsity:g}"] if sparsity is not None else []), *filter(None, [change]), f"seed{seed}"]


def shown(value: Any) -> str:
    """A setting as it is written."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
