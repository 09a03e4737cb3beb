from anchored.metrics.registry import IMAGE_METRICS, METRICS, OOD_METRICS


def test_every_measured_metric_has_a_title() -> None:
    assert set(IMAGE_METRICS) | set(OOD_METRICS) <= set(METRICS)
    assert {name for name, row in METRICS.items() if row.percent} == {
        "accuracy",
        "auroc",
        "fpr95",
        "aupr",
        "linear_probe_accuracy",
        "estimated_accuracy",
        "accuracy_error",
        "same_class",
    }
