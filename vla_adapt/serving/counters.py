"""Counters of a running server in Prometheus' text format. One object per server, no global registry."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """Requests by robot and outcome, inference time by robot, requests in flight, open connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.in_flight = 0
        self.connections = 0

    def count(self, robot: str, outcome: str) -> None:
        """Notes one finished request; `robot` is a served name or `""`, so that labels stay few and safe."""
        with self._lock:
            self._requests[robot, outcome] += 1

    def observe(self, robot: str, seconds: float) -> None:
        """Notes the duration of one inference."""
        with self._lock:
            counts = self._buckets.setdefault(robot, [0] * (len(BUCKETS_S) + 1))
            counts[sum(seconds > edge for edge in BUCKETS_S)] += 1
            self._seconds[robot] += seconds

    def text(self) -> str:
        """All numbers, one per line."""
        with self._lock:
            lines = ["# TYPE vla_adapt_requests_total counter"]
            for (robot, outcome), number in sorted(self._requests.items()):
                lines.append(f'vla_adapt_requests_total{{robot="{robot}",outcome="{outcome}"}} {number}')
            lines.append("# TYPE vla_adapt_inference_seconds histogram")
            for robot, counts in sorted(self._buckets.items()):
                lines += self._histogram(robot, counts)
            for name, value in (("in_flight", self.in_flight), ("connections", self.connections)):
                lines += [f"# TYPE vla_adapt_{name} gauge", f"vla_adapt_{name} {value}"]
        return "\n".join(lines) + "\n"

    def _histogram(self, robot: str, counts: list[int]) -> list[str]:
        name, total, lines = "vla_adapt_inference_seconds", 0, []
        for edge, number in zip([*map(str, BUCKETS_S), "+Inf"], counts, strict=True):
            total += number
            lines.append(f'{name}_bucket{{robot="{robot}",le="{edge}"}} {total}')
        lines.append(f'{name}_sum{{robot="{robot}"}} {self._seconds[robot]:.6f}')
        return [*lines, f'{name}_count{{robot="{robot}"}} {total}']
