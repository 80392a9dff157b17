from dataclasses import replace
from typing import Any

import pytest

from haste.config import Config
from haste.estimate import device, estimate
from haste.train.budget import fit_settings, run_workload, system_workload
from haste.train.preset import Facts, fill, flatten

FACTS = Facts(
    num_documents=500_000, num_labels=300_000, labels_per_document=5.0, words_per_document=60.0, memory_bytes=64 * 2**30
)


def filled(**given: Any) -> dict[str, Any]:
    return fill({"data": {"path": "x"}, **given}, FACTS)[0]


def total(values: dict[str, Any]) -> float:
    return estimate(run_workload(Config.from_dict(values), FACTS), device("cpu", 1e12), run=True).total


def test_settings_are_lowered_no_further_than_needed() -> None:
    wanted = filled()
    whole = total(wanted)
    for part in (1.1, 0.9, 0.7, 0.5):
        values, lines = fit_settings(wanted, FACTS, whole * part)
        assert total(values) <= whole * part
        assert (values == wanted) == (part > 1)
        assert len(lines) == 1 if part > 1 else len(lines) > 2
    assert lines[-1].startswith("together they take ")


def test_what_was_given_stays() -> None:
    wanted = filled()
    fixed = {"data.max_features", "output.fan_in", "optim.batch_size"}
    values, _ = fit_settings(wanted, FACTS, total(wanted) * 0.7, fixed=fixed)
    for key in fixed:
        section, name = key.split(".")
        assert values[section][name] == wanted[section][name]


def test_a_vocabulary_that_fits_is_left_as_it_is() -> None:
    counted = replace(FACTS, num_terms=30_000)
    for most in (None, 100_000, 20_000):
        wanted = filled(data={"path": "x", "max_features": most})
        enough = estimate(run_workload(Config.from_dict(wanted), counted), device("cpu", 1e12), run=True).total
        values, lines = fit_settings(wanted, counted, enough)
        assert (values, len(lines)) == (wanted, 1)
    wanted = filled(data={"path": "x", "max_features": 100_000})
    fixed = set(flatten(Config.from_dict(wanted).to_dict())) - {"data.max_features"}
    whole = estimate(run_workload(Config.from_dict(wanted), counted), device("cpu", 1e12), run=True).total
    values, lines = fit_settings(wanted, counted, 0.97 * whole, fixed=fixed)
    assert values["data"]["max_features"] == 15_000
    assert lines[1].startswith("data.max_features 15,000: with 30,000 it would take")


def test_a_gpu_has_a_budget_of_its_own() -> None:
    on_gpu = Facts(**{**vars(FACTS), "device": "cuda"})
    values, _ = fit_settings(filled(), on_gpu, 4e9)
    assert values["output"]["fan_in"] >= 16


def test_what_is_asked_for_is_to_fit() -> None:
    wanted = filled(output={"fan_in": 256})
    budget = 1.01 * total(wanted)
    assert fit_settings(wanted, FACTS, budget)[0] == wanted
    values, _ = fit_settings(wanted, FACTS, budget, systems=("spartex",))
    spartex = system_workload("spartex", Config.from_dict(values), FACTS)
    assert estimate(spartex, device("cpu", budget), run=True).fits
    assert values != wanted


def test_nothing_fits() -> None:
    with pytest.raises(ValueError, match=r"memory_budget \(476.8 MiB\) must be at least .* framework .* raise it"):
        fit_settings(filled(), FACTS, 5e8)
    with pytest.raises(ValueError, match=r"memory_budget \(190.7 MiB\) must be above 400.5 MiB"):
        fit_settings(filled(), FACTS, 2e8)
