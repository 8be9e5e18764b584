"""What the operator's metrics tell of its own sight."""

from prometheus_client import generate_latest

from gptoss_operator.metrics import Metrics


def test_a_kind_that_is_not_followed_any_more_is_seen_at_the_next_scrape() -> None:
    metrics, watches = Metrics(), {"pods": True, "networkpolicies": True}
    metrics.follow(lambda: watches)
    assert 'gptoss_operator_watches{resource="pods"} 1.0' in generate_latest(metrics.registry).decode()
    watches["networkpolicies"] = False
    told = generate_latest(metrics.registry).decode()
    assert 'gptoss_operator_watches{resource="networkpolicies"} 0.0' in told
    assert 'gptoss_operator_watches{resource="pods"} 1.0' in told
