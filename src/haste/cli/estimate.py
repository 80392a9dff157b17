"""`haste estimate`: memory and least time of a configuration, before it runs."""

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haste.cli._arguments import Parser, bytes_of, positive
from haste.config import Config, Run, check_keys, expand_path
from haste.estimate import (
    DEVICES,
    MODELS,
    Estimate,
    Workload,
    as_json,
    as_text,
    device,
    estimate,
    size,
)
from haste.train.budget import CONFIGURED, fit_settings, system_workload
from haste.train.preset import Facts, free_memory
from haste.train.systems import SYSTEMS

if TYPE_CHECKING:
    from haste.data.store import Store

# Option -> the setting it stands for.
_KEYS = {
    "in_features": "encoder.features",
    "fan_in": "output.fan_in",
    "group_size": "output.group_size",
    "head_ratio": "output.head_ratio",
    "private_features": "output.private_features",
    "intermediate": "output.intermediate",
    "dtype": "output.dtype",
    "batch_size": "optim.batch_size",
}
# Of those that take the same memory, one.
_SHOWN = ("haste", "dense", "dense-bf16", "bottleneck", "block-sparse", "spartex")
_SYSTEM = f"as in haste compare; default configured, {', '.join(_SHOWN)}; may be repeated"
_RULES = {"sgd": ("sgd", 0.0), "momentum": ("sgd", 0.9), "adamw": ("adamw", 0.0)}


def run(argv: list[str]) -> int:
    """Print the estimate; returns 1 where the system asked for does not fit the device."""
    options = _parser().parse_args(argv)
    if options.published:
        from haste.estimate.published import hundred_million, table_1

        print("\n".join([*table_1(), "", *hundred_million()]))
        return 0
    chosen = device(options.device or "cpu", free_memory())
    of_run, budget = options.settings is not None, options.memory_budget
    if of_run:
        values, facts, given = _of_settings(options)
    else:
        values, facts = _of_sizes(options)
        given = _given(options, values)
        if options.encoder in (None, "none"):
            values["encoder"]["features"] = 0  # given features, as wide as they are
    reasons: list[str] = []
    if budget is not None:
        chosen = replace(chosen, memory=budget)
        asked = options.system or (CONFIGURED,)
        values, reasons = fit_settings(values, facts, budget, fixed=given, systems=asked, run=of_run)
    workloads, left_out = _workloads(options, Config.from_dict(values), facts)
    reasons += left_out
    found = {name: estimate(workload, chosen, run=of_run) for name, workload in workloads.items()}
    workload = next(iter(workloads.values()))
    measured = _measured(found, options.measure)
    if options.json:
        record = {name: {**as_json(value), **measured.get(name, {})} for name, value in found.items()}
        print(json.dumps({"workload": asdict(workload), "budget": reasons, "systems": record}))
    else:
        print("\n".join([_headline(workload), *(f"  {line}" for line in reasons), "", as_text(found)]))
        for name, values in measured.items():
            _show_measured(name, found[name], values)
    return int(len(options.system or ()) == 1 and chosen.memory > 0 and not next(iter(found.values())).fits)


def _workloads(options: argparse.Namespace, config: Config, facts: Facts) -> tuple[dict[str, Workload], list[str]]:
    """What each system trains, the configuration first where it is not HASTE, and lines about those left out."""
    found, left_out = {}, []
    for name in options.system or (CONFIGURED, *_SHOWN):
        try:
            found[name] = system_workload(name, config, facts, checkpointing=options.checkpointing)
        except ValueError as error:
            if options.system or name == CONFIGURED:
                raise
            left_out.append(f"{name} is left out: {error}")
    if not options.system and found[CONFIGURED] == found.get("haste"):
        found = {"haste": found["haste"]} | {name: found[name] for name in found if name != CONFIGURED}
    return found, left_out


def _count(text: str) -> int:
    """A whole number that may be written as 8.6e6."""
    value = float(text)
    if value != int(value) or value < 1:
        raise argparse.ArgumentTypeError(f"({text}) must be a whole number of at least 1")
    return int(value)


def _parser() -> Parser:
    parser = Parser(
        prog="haste estimate",
        description="Memory by part, and FLOP and bytes of a training step, before a run; of every system of the "
        "family side by side. SETTINGS is a YAML file of settings or a path of data, as haste train takes them; "
        "without it the sizes are given by options.",
    )
    parser.add_argument("settings", nargs="?", metavar="SETTINGS", help="file of settings, or data")
    of = parser.add_argument_group("sizes (they win over those of SETTINGS)")
    of.add_argument("--labels", type=_count, help="L; with SETTINGS the data is not read then")
    of.add_argument("--inputs", type=_count, help="terms of the vocabulary, or given features")
    of.add_argument("--in-features", type=_count, help="H, width of the encoder's output")
    of.add_argument("--fan-in", type=_count, help="F, inputs of a tail label")
    of.add_argument("--group-size", type=_count, help="S, tail labels that share their inputs")
    of.add_argument("--head-ratio", type=float, help="part of the labels that reads all features")
    of.add_argument("--private-features", choices=("none", "slice", "projection"))
    of.add_argument("--intermediate", type=_count, help="width of a layer between encoder and output layer")
    of.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the output layer's weights")
    of.add_argument("--optimizer", dest="rule", choices=("sgd", "momentum", "adamw"), help="of the output layer")
    of.add_argument("--batch", dest="batch_size", type=_count, help="documents a step")
    of.add_argument("--positives", type=float, help="labels of a document, on average")
    of.add_argument("--terms", type=float, help="terms of a document, on average")
    of.add_argument("--encoder", choices=("none", *MODELS), help="a transformer of known size, trained in bfloat16")
    of.add_argument("--tokens", type=positive, default=128, help="of a document (%(default)s)")
    of.add_argument("--checkpointing", action="store_true", help="a transformer's activations are computed twice")
    where = parser.add_argument_group("where, and what of it")
    where.add_argument("--device", choices=("cpu", *DEVICES), help="default cpu: this machine")
    where.add_argument("--system", action="append", choices=(CONFIGURED, *SYSTEMS), help=_SYSTEM)
    where.add_argument("--memory-budget", type=bytes_of, help="find settings that fit, such as 12GB")
    where.add_argument("--measure", action="store_true", help="build and train it here for three steps, too")
    where.add_argument("--published", action="store_true", help="the data sets of HASTE's Table 1, and 10^8 labels")
    where.add_argument("--json", action="store_true")
    return parser


_MANY = 10**7  # documents, whose vocabulary is as large as the settings let it be


def _of_sizes(options: argparse.Namespace) -> tuple[dict[str, Any], Facts]:
    """Settings of sizes alone: an encoder of known size, or features that are given."""
    if options.labels is None or options.in_features is None:
        raise ValueError("haste estimate needs --labels and --in-features, or a file of settings, or data")
    values: dict[str, Any] = {
        "data": {"path": ".", "max_tokens": options.tokens},
        "encoder": {"kind": "features", "features": 0},
        "output": {"fan_in": 128, "group_size": 32, "head_ratio": 0.0, "dtype": "bfloat16"},
        "optim": {"batch_size": 128},
        "rewire": {"regrow": "random"},
    }
    if options.encoder not in (None, "none"):
        values["encoder"] = {"kind": "transformer", "name": options.encoder, "dtype": "bfloat16"}
        values["optim"]["encoder"] = {"name": "kahan_adamw", "state_dtype": "bfloat16", "lr": 1e-4}
    facts = Facts(
        num_documents=_MANY,
        num_labels=options.labels,
        labels_per_document=options.positives or 5.0,
        kind="dense",
        num_inputs=options.in_features,
        memory_bytes=free_memory(),
        device="cpu" if options.device in (None, "cpu") else "cuda",
    )
    return values, facts


def _of_settings(options: argparse.Namespace) -> tuple[dict[str, Any], Facts, set[str]]:
    """The settings of a file, or what `haste train` would choose for data; which were given."""
    from haste.train.preset import fill

    values: dict[str, Any] = {"data": {"path": options.settings}}
    is_file = options.settings.endswith((".yaml", ".yml"))
    if is_file:
        from haste.train.run_folder import read_yaml

        values = read_yaml(Path(options.settings))
        check_keys(values)
    given = _given(options, values)
    facts, store = _facts(options, values)
    if not is_file:
        values = fill(values, facts)[0]
    if store is not None:
        from haste.train.auto import with_terms

        facts = with_terms(facts, store, Config.from_dict(values), log=_say)
    return values, facts, given


def _given(options: argparse.Namespace, values: dict[str, Any]) -> set[str]:
    """Put the sizes of the command line into the settings; all the keys that were given."""
    from haste.train.preset import flatten

    given = set(flatten(values)) if options.settings is not None else set()
    for option, key in _KEYS.items():
        if getattr(options, option) is not None:
            section, _, name = key.partition(".")
            values.setdefault(section, {})[name] = getattr(options, option)
            given.add(key)
    if options.rule is not None:
        update = values.setdefault("optim", {}).setdefault("output", {})
        update["name"], update["momentum"] = _RULES[options.rule]
    return given


def _facts(options: argparse.Namespace, values: dict[str, Any]) -> tuple[Facts, "Store | None"]:
    """Of the data that the settings name; of data that need not be here with --labels, or where settings count them.

    Returns: the facts, and the data where it was read.
    """
    config = Config.from_dict({"data": values["data"], "label_texts": values.get("label_texts", {})})
    data = config.data
    num_labels, store = options.labels, None
    if num_labels is None and data.expected.labels and not _is_here(data.path):
        num_labels = data.expected.labels
    if num_labels is None:
        from haste.data.store import open_store
        from haste.train.auto import facts_of

        store = open_store(data, log=_say)
        device = values.get("run", {}).get("device", Run().device)
        facts = facts_of(store, device, label_texts=config.label_texts.read)
    else:
        facts = Facts(
            num_documents=_MANY,
            num_labels=num_labels,
            labels_per_document=5.0,
            words_per_document=options.terms or 100.0,
            memory_bytes=free_memory(),
        )
    changes = {
        "kind": None if options.inputs is None or facts.kind != "text" else "sparse",
        "num_inputs": options.inputs,
        "labels_per_document": options.positives,
        "words_per_document": options.terms,
        "device": None if options.device is None else "cpu" if options.device == "cpu" else "cuda",
    }
    return replace(facts, **{name: value for name, value in changes.items() if value is not None}), store


def _is_here(path: str) -> bool:
    """Whether there is data; a path with a variable that is not set leads nowhere."""
    try:
        return Path(expand_path(path, "data.path")).exists()
    except ValueError:
        return False


def _say(line: str) -> None:
    """What reading the data says; apart from the estimate, which programs may read."""
    print(line, file=sys.stderr)


def _measured(found: dict[str, Estimate], wanted: bool) -> dict[str, dict[str, Any]]:
    if not wanted:
        return {}
    from haste.train.measure import measure

    here = {
        name: measure(value.workload, threads=int(os.environ.get("OMP_NUM_THREADS", 0)) or None)
        for name, value in found.items()
    }
    return {name: {"measured_phases": phases, "measured_peak": max(phases.values())} for name, phases in here.items()}


def _show_measured(name: str, found: Estimate, values: dict[str, Any]) -> None:
    peak = values["measured_peak"]
    phases = ", ".join(f"{phase} {size(count)}" for phase, count in values["measured_phases"].items())
    print(f"measured here, {name}: {size(peak)} ({phases}); estimate {size(found.peak)}, {found.peak / peak:.2f} of it")


def _headline(workload: Workload) -> str:
    w = workload
    head = f", head {w.num_head_labels:,}" if w.num_head_labels else ""
    encoder = ""
    if w.encoder is not None and w.encoder.parameters:
        encoder = f"; encoder {w.encoder.kind}, {w.encoder.parameters / 1e6:,.1f} M numbers"
    return (
        f"L {w.num_labels:,}, H {w.in_features}, fan_in {w.fan_in} of {w.inputs}, groups of {w.group_size}{head}, "
        f"{w.dtype}, {w.rule}, B {w.batch_size}{encoder}"
    )
