"""Which runs a comparison has: every system with every seed, sparsity and variation, and the settings of each."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from haste.config import Config
from haste.train.given_data import load_given
from haste.train.progress import print_line
from haste.train.systems import SYSTEMS, Shared, Sizes, settings_of

_LAYER_SECTIONS = ("output", "rewire", "auxiliary")
_DIAGNOSTICS = 40  # times a run


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
        sizes = sizes or Sizes(
            inputs=dataset.num_inputs, labels=dataset.labels.num_labels, documents=len(dataset.train)
        )
    assert sizes is not None
    return sizes


def planned_runs(plan: Plan, sizes: Sizes, output: Path) -> list[Planned]:
    """Every run of a plan, seed by seed, so that all systems are there early; equal ones once.

    Raises:
        ValueError, TypeError: a setting that cannot be, with the run that would have it.
    """
    steps = plan.config.optim.epochs * -(-sizes.documents // plan.config.optim.batch_size)
    run = replace(plan.config.run, diagnostics_every=max(1, steps // _DIAGNOSTICS))
    found: dict[str, Planned] = {}
    seen: set[str] = set()
    for seed in plan.seeds:
        for name in plan.systems:
            for sparsity in plan.sparsities if SYSTEMS[name].sized else (None,):
                for varied in ({}, *_variations(plan, name)):
                    change = "+".join(f"{key}={shown(value)}" for key, value in varied.items())
                    slug = re.sub(r"[^\w.=+-]", "_", "-".join(_words(name, sparsity, change, seed)))
                    base = replace(plan.config, run=replace(run, seed=seed, dir=str(output / "runs" / slug)))
                    shared = Shared(config=base, sizes=sizes, sparsity=sparsity)
                    own = plan.settings.get(name, {})
                    changes = {**own, **_changes(varied)}
                    try:
                        config = settings_of(SYSTEMS[name], shared, changes)
                    except (ValueError, TypeError) as error:
                        raise type(error)(f"{slug}: {error}") from None
                    same = json.dumps([name, replace(config, run=run).to_dict(), seed])
                    if same not in seen:
                        found[slug] = Planned(
                            name=slug, system=name, sparsity=sparsity, change=change, own=own, config=config
                        )
                    seen.add(same)
    return list(found.values())


def _variations(plan: Plan, name: str) -> list[Mapping[str, Any]]:
    """Variations that a system can have: a layer that is not sparse has nothing of its own to vary."""
    sparse = SYSTEMS[name].sparse
    return [v for v in plan.vary if sparse or not any(key.partition(".")[0] in _LAYER_SECTIONS for key in v)]


def _changes(varied: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variation; regrowing nothing is never rewiring."""
    never = {"rewire.interval": 0} if varied.get("rewire.regrow") == "none" else {}
    return {key: value for key, value in varied.items() if key != "rewire.regrow" or not never} | never


def _words(name: str, sparsity: float | None, change: str, seed: int) -> list[str]:
    return [name, *([f"{100 * sparsity:g}"] if sparsity is not None else []), *filter(None, [change]), f"seed{seed}"]


def shown(value: Any) -> str:
    """A setting as it is written."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
