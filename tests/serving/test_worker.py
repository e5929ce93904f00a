from __future__ import annotations

import asyncio
import threading
import time

import pytest

from vla_adapt.serving.worker import InferenceThread


def test_jobs_run_in_order_in_one_other_thread() -> None:
    worker = InferenceThread()
    seen: list[tuple[int, int]] = []

    async def main() -> list[int]:
        def job(number: int) -> int:
            seen.append((number, threading.get_ident()))
            return number

        return await asyncio.gather(*(worker.run(lambda n=n: job(n)) for n in range(20)))

    assert asyncio.run(main()) == list(range(20))
    assert [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] != threading.get_ident()
    worker.stop()


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), KeyboardInterrupt()])
def test_a_failing_job_leaves_the_thread_alive(error: BaseException) -> None:
    worker = InferenceThread()

    def fail() -> None:
        raise error

    async def main() -> int:
        with pytest.raises((KeyError, RuntimeError)):
            await worker.run(fail)
        return await worker.run(lambda: 5)

    assert asyncio.run(main()) == 5
    assert worker.is_alive
    worker.stop()


def test_a_cancelled_job_is_skipped() -> None:
    worker = InferenceThread()
    ran: list[str] = []

    async def main() -> None:
        first = asyncio.create_task(worker.run(lambda: time.sleep(0.1)))
        second = asyncio.create_task(worker.run(lambda: ran.append("second")))
        await asyncio.sleep(0.02)
        assert worker.waiting == 1
        second.cancel()
        await first
        await worker.run(lambda: ran.append("third"))

    asyncio.run(main())
    assert ran == ["third"]
    worker.stop()
    worker._thread.join(2)
    assert not worker.is_alive
