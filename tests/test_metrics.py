import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, csr_matrix

from haste.metrics import as_percent, describe_propensity, evaluate, inverse_propensity, per_decile

METRICS = ("precision", "ndcg", "recall", "psprecision", "psndcg", "rprecision")


def to_truth(rows, num_labels, kind=csr_matrix):
    offsets = np.cumsum([0] + [len(row) for row in rows])
    labels = np.array([label for row in rows for label in row], dtype=np.int32)
    return kind((np.ones(len(labels), dtype=np.float32), labels, offsets), shape=(len(rows), num_labels))


def oracle(topk, truth, k, weights):
    """The definitions, read off one row and one cut-off at a time."""
    result = {name: [] for name in METRICS}
    for j in range(1, k + 1):
        total = dict.fromkeys(METRICS, 0.0)
        best_psp = best_psndcg = 0.0
        labelled = 0
        for predicted, labels in zip(topk, truth, strict=True):
            hits = [(rank, label) for rank, label in enumerate(predicted[:j], start=1) if label in labels]
            total["precision"] += len(hits) / j
            if not labels:
                continue
            labelled += 1
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(j, len(labels)) + 1))
            total["ndcg"] += sum(1 / math.log2(rank + 1) for rank, _ in hits) / ideal
            total["recall"] += len(hits) / len(labels)
            total["rprecision"] += len(hits) / min(j, len(labels))
            total["psprecision"] += sum(weights[label] for _, label in hits) / j
            total["psndcg"] += sum(weights[label] / math.log2(rank + 1) for rank, label in hits) / ideal
            best = sorted((weights[label] for label in labels), reverse=True)[:j]
            best_psp += sum(best) / j
            best_psndcg += sum(w / math.log2(rank + 1) for rank, w in enumerate(best, start=1)) / ideal
        divisors = dict.fromkeys(METRICS, len(topk)) | {
            "psprecision": best_psp,
            "psndcg": best_psndcg,
            "rprecision": labelled,
        }
        for name in METRICS:
            result[name].append(total[name] / divisors[name])
    return result


@st.composite
def problems(draw):
    """Ranked predictions with -1s anywhere, truth with empty rows and labels no prediction can reach."""
    num_predictable = draw(st.integers(1, 12))
    num_labels = num_predictable + draw(st.integers(0, 4))
    num_rows = draw(st.integers(1, 6))
    width = draw(st.integers(1, 8))
    k = draw(st.integers(1, width))
    topk = []
    for _ in range(num_rows):
        ids = draw(st.permutations(range(num_predictable)))[:width]
        ids = [-1 if draw(st.integers(0, 4)) == 0 else label for label in ids]
        topk.append(ids + [-1] * (width - len(ids)))
    truth = [draw(st.sets(st.integers(0, num_labels - 1), max_size=num_labels)) for _ in range(num_rows)]
    if not any(truth):
        truth[draw(st.integers(0, num_rows - 1))] = {draw(st.integers(0, num_labels - 1))}
    counts = draw(st.lists(st.integers(0, 50), min_size=num_labels, max_size=num_labels))
    return topk, truth, num_labels, k, np.array(counts)


@settings(deadline=None)
@given(problem=problems(), kind=st.sampled_from([csr_matrix, csr_array]), dtype=st.sampled_from("il"))
def test_evaluate_is_the_definition(problem, kind, dtype):
    topk, truth, num_labels, k, counts = problem
    weights = inverse_propensity(counts, 60)
    found = evaluate(np.array(topk, dtype=dtype), to_truth(truth, num_labels, kind), k, weights)
    expected = oracle(topk, truth, k, weights)
    assert set(found) == set(METRICS)
    for name in METRICS:
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-15, err_msg=name)


@settings(deadline=None)
@given(problem=problems())
def test_deciles_are_the_definition_and_sum_to_precision(problem):
    topk, truth, num_labels, k, counts = problem
    matrix = to_truth(truth, num_labels)
    found = per_decile(topk, matrix, counts, k)
    order = sorted(range(num_labels), key=lambda label: (-counts[label], label))
    expected = np.zeros((10, k))
    for place, label in enumerate(order):
        for j in range(1, k + 1):
            hits = sum(label in row[:j] and label in labels for row, labels in zip(topk, truth, strict=True))
            expected[place * 10 // num_labels, j - 1] += hits / (j * len(topk))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.sum(axis=0), evaluate(topk, matrix, k)["precision"], atol=1e-12)


def test_deciles_hold_equal_numbers_of_labels():
    num_labels, counts = 40, np.arange(40)
    topk = np.arange(num_labels)[:, None]
    found = per_decile(topk, to_truth([[label] for label in range(num_labels)], num_labels), counts, k=1)
    np.testing.assert_allclose(found, np.full((10, 1), 0.1))


def test_evaluate_on_a_worked_example():
    truth = to_truth([[0, 3], [], [1]], 5)
    topk = np.array([[3, 2, 0], [4, 1, 0], [2, 1, -1]])
    result = evaluate(topk, truth, k=3, inverse_propensity=[1.0, 4.0, 1.0, 2.0, 1.0])
    np.testing.assert_allclose(result["precision"], [1 / 3, 2 / 6, 3 / 9])
    np.testing.assert_allclose(result["recall"], [0.5 / 3, 1.5 / 3, 2 / 3])
    np.testing.assert_allclose(result["rprecision"], [1 / 2, 1.5 / 2, 2 / 2])
    np.testing.assert_allclose(result["psprecision"], [2 / 6, 6 / 7, 7 / 7])


def test_propensity_scores_are_left_out_without_inverse_propensity():
    result = evaluate([[0]], to_truth([[0]], 1), k=1)
    assert set(result) == {"precision", "ndcg", "recall", "rprecision"}


def test_unsorted_truth_scores_as_sorted():
    rows = [[4, 0, 2], [3, 1]]
    topk = np.array([[2, 4, 1], [0, 3, 4]])
    unsorted, ordered = to_truth(rows, 5), to_truth([sorted(row) for row in rows], 5)
    for name, values in evaluate(topk, unsorted, k=3).items():
        np.testing.assert_array_equal(values, evaluate(topk, ordered, k=3)[name])
    np.testing.assert_array_equal(unsorted.indices, [4, 0, 2, 3, 1])


def test_row_times_label_does_not_overflow_32_bits():
    num_rows, num_labels = 50_000, 100_000
    labels = np.arange(num_rows, dtype=np.int32)[:, None] + 7
    truth = to_truth(labels.tolist(), num_labels)
    assert evaluate(labels, truth, k=1)["precision"] == 1.0
    assert evaluate(labels + 1, truth, k=1)["precision"] == 0.0


def test_as_percent_names_and_scales():
    result = evaluate([[0, 1, 2, 3]], to_truth([[0, 2]], 4), k=4, inverse_propensity=[1.0, 1.0, 1.0, 1.0])
    percent = as_percent(result)
    short = ("P", "nDCG", "R", "PSP", "PSnDCG", "RP")
    assert set(percent) == {f"{name}@{cutoff}" for name in short for cutoff in (1, 3)}
    assert percent["P@1"] == 100.0
    assert percent["P@3"] == pytest.approx(200 / 3)
    assert percent["R@1"] == 50.0
    assert percent["nDCG@3"] == pytest.approx(100 * 1.5 / (1 + 1 / math.log2(3)))


def test_inverse_propensity_follows_the_formula():
    scale = (math.log(1000) - 1) * 3.6**0.6
    expected = [1 + scale * (n + 2.6) ** -0.6 for n in (0, 1, 1000)]
    np.testing.assert_allclose(inverse_propensity([0, 1, 1000], 1000, a=0.6, b=2.6), expected, rtol=1e-14)


def test_describe_propensity_names_the_constants():
    assert describe_propensity() == "propensity A=0.55, B=1.5"
    assert describe_propensity(0.6, 2.6) == "propensity A=0.6, B=2.6"


TRUTH = to_truth([[0, 2], [1]], 4)
TOPK = np.array([[0, 1], [2, -1]])
TWICE = csr_matrix((np.ones(2), [1, 1], [0, 2, 2]), shape=(2, 4))


@pytest.mark.parametrize(
    ("topk", "truth", "k", "weights", "error", "message"),
    [
        (TOPK.astype(float), TRUTH, 2, None, TypeError, r"topk \(float64\) must be of an integer dtype"),
        (TOPK[0], TRUTH, 2, None, ValueError, r"topk \(2,\) must be \(N, K\)"),
        (TOPK[:1], TRUTH, 2, None, ValueError, r"one row for each of truth's 2 rows"),
        (TOPK, TRUTH, 3, None, ValueError, r"k \(3\) must be from 1 to the 2 columns"),
        (TOPK, TRUTH, 0, None, ValueError, r"k \(0\) must be from 1"),
        (np.array([[0, 1], [4, 1]]), TRUTH, 2, None, ValueError, r"topk\[1, 0\] \(4\) must be -1"),
        (np.array([[0, -2], [2, 1]]), TRUTH, 2, None, ValueError, r"topk\[0, 1\] \(-2\) must be -1"),
        (np.array([[0, 1], [2, 2]]), TRUTH, 1, None, ValueError, r"topk\[1\] must not repeat a label id \(2\)"),
        (TOPK, TRUTH.toarray(), 2, None, TypeError, r"truth \(ndarray\) must be a scipy csr_matrix"),
        (TOPK, TRUTH.tocsc(), 2, None, TypeError, r"truth \(csc_matrix\) must be a scipy csr_matrix"),
        (TOPK, TRUTH * 2, 2, None, ValueError, "truth must hold only ones"),
        (TOPK, TWICE, 2, None, ValueError, "truth must not hold a label twice"),
        (TOPK, to_truth([[], []], 4), 2, None, ValueError, "must be .* and hold at least one label"),
        (TOPK, TRUTH, 2, np.ones(3), ValueError, r"inverse_propensity \(3,\) must be \(4,\)"),
        (TOPK, TRUTH, 2, [1, 1, np.nan, 1], ValueError, "inverse_propensity must be positive and finite"),
    ],
)
def test_evaluate_refuses(topk, truth, k, weights, error, message):
    with pytest.raises(error, match=message):
        evaluate(topk, truth, k, weights)


@pytest.mark.parametrize(
    ("counts", "num_points", "constants", "message"),
    [
        ([1, 2], 2, {}, r"num_points \(2\) must be at least 3"),
        ([[1, 2]], 10, {}, r"counts \(1, 2\) must be 1-D"),
        ([1, -1], 10, {}, r"counts \(down to -1\) must not be negative"),
        ([1, 11], 10, {}, r"counts \(up to 11\) must not exceed num_points \(10\)"),
        ([1, 2], 10, {"b": 0.0}, r"a \(0.55\) and b \(0.0\) must be positive"),
    ],
)
def test_inverse_propensity_refuses(counts, num_points, constants, message):
    with pytest.raises(ValueError, match=message):
        inverse_propensity(counts, num_points, **constants)


def test_per_decile_refuses_counts_of_another_length():
    with pytest.raises(ValueError, match=r"counts \(3 labels\) must cover the 4 columns of truth"):
        per_decile(TOPK, TRUTH, [1, 2, 3], k=2)


def xclib_cases():
    shared = Path(os.environ.get("HASTE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = shared / "vectors" / "metrics.json"
    if not path.exists():
        pytest.skip(f"{path} not found; set HASTE_SHARED to the folder that holds vectors/metrics.json")
    return json.loads(path.read_text())["cases"]


@pytest.mark.parametrize("case_number", range(3))
def test_evaluate_equals_xclib(case_number):
    case = xclib_cases()[case_number]
    counts = np.bincount(np.concatenate(case["train_labels"]).astype(int), minlength=case["num_labels"])
    weights = inverse_propensity(counts, len(case["train_labels"]), a=case["A"], b=case["B"])
    np.testing.assert_allclose(weights, case["inverse_propensity"], rtol=1e-9)
    truth = to_truth(case["test_labels"], case["num_labels"])
    result = evaluate(np.array(case["predicted_labels"]), truth, case["k"], weights)
    for name in ("precision", "recall", "psprecision"):
        np.testing.assert_allclose(result[name], case[name], rtol=0, atol=1e-9, err_msg=name)
    for name in ("ndcg", "psndcg"):  # the vectors' nDCGs were accumulated in float32
        np.testing.assert_allclose(result[name], case[name], rtol=0, atol=1e-6, err_msg=name)
