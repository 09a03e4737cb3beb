from anchored.metrics.bounded import RATES
from anchored.metrics.intervals import BOUNDED
from anchored.metrics.registry import IMAGE_METRICS, METRICS, OOD_METRICS


def test_every_measured_metric_has_a_title() -> None:
    assert set(IMAGE_METRICS) | set(OOD_METRICS) <= set(METRICS)
    shares = {"linear_probe_accuracy", "accuracy_error", "shifted_accuracy", *RATES, *BOUNDED}
    assert {name for name, row in METRICS.items() if row.percent} == shares
