"""scikit-learn's own checks of an estimator; those that fail, and why they must."""

import pytest
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import haste

_SPARSE = "predict gives CSR for several labels a document, for there may be millions of columns"
EXPECTED = {
    "check_classifiers_multilabel_representation_invariance": _SPARSE,
    "check_classifiers_multilabel_output_format_predict": _SPARSE,
    "check_methods_subset_invariance": "float32 products of one row and of many differ in the last bit; 1e-7 is asked",
}
_SHORT = {"epochs": 12, "batch_size": 32}  # enough for the accuracy that the checks ask for


@parametrize_with_checks(
    [haste.Classifier(**_SHORT, verbose=False)], expected_failed_checks=lambda _: EXPECTED, xfail_strict=False
)
def test_short_fits(estimator: haste.Classifier, check: object) -> None:
    check(estimator)


@pytest.mark.slow
def test_as_users_make_it() -> None:
    check_estimator(haste.Classifier(verbose=False), expected_failed_checks=EXPECTED, on_skip=None)
