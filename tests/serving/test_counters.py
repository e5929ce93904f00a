from __future__ import annotations

from vla_adapt.serving.counters import ServerMetrics


def test_counts_and_histogram_are_cumulative() -> None:
    metrics = ServerMetrics()
    metrics.count("ur5e", "ok")
    metrics.count("ur5e", "ok")
    metrics.count("", "unknown_robot")
    for seconds in (0.004, 0.03, 9.0):
        metrics.observe("ur5e", seconds)
    metrics.connections = 2
    lines = metrics.text().splitlines()
    assert 'vla_adapt_requests_total{robot="ur5e",outcome="ok"} 2' in lines
    assert 'vla_adapt_requests_total{robot="",outcome="unknown_robot"} 1' in lines
    assert 'vla_adapt_inference_seconds_bucket{robot="ur5e",le="0.005"} 1' in lines
    assert 'vla_adapt_inference_seconds_bucket{robot="ur5e",le="0.05"} 2' in lines
    assert 'vla_adapt_inference_seconds_bucket{robot="ur5e",le="5.0"} 2' in lines
    assert 'vla_adapt_inference_seconds_bucket{robot="ur5e",le="+Inf"} 3' in lines
    assert 'vla_adapt_inference_seconds_count{robot="ur5e"} 3' in lines
    assert 'vla_adapt_inference_seconds_sum{robot="ur5e"} 9.034000' in lines
    assert "vla_adapt_connections 2" in lines
