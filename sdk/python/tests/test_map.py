"""map: order, credit, failures, resumption."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any, AsyncIterator, Callable, Iterator, List

import beam
import pytest
from fakenode.server import FakeNode, Map

Load = Callable[[str], Any]

CODE = """
from beam import function
@function()
def square(i):
    if i == 13: raise ValueError('unlucky')
    return i * i
@function()
def add(a, b=10): return a + b
@function()
def slow(i):
    import time
    print('up', i)
    time.sleep(600)
"""


def test_ordered(module: Load, node: FakeNode) -> None:
    m = module(CODE)
    assert list(m.square.map(range(20, 320))) == [i * i for i in range(20, 320)]
    puts = node.named("Put")
    assert all(len(put.get("items", [])) <= node.credit for put in puts)
    assert [put.get("last") for put in puts][-1] is True


def test_completion_order_has_the_same_values(module: Load) -> None:
    m = module(CODE)
    assert sorted(m.square.map(range(20, 60), order_outputs=False)) == [i * i for i in range(20, 60)]


def test_tuples_are_spread(module: Load) -> None:
    m = module(CODE)
    assert list(m.add.map([(1, 2), (3,), 4, ([5], [6])])) == [3, 13, 14, [5, 6]]
    assert list(m.add.map([])) == []


def test_failed_item_is_raised_in_order(module: Load, node: FakeNode) -> None:
    m = module(CODE)
    got = []
    with pytest.raises(ValueError, match="unlucky") as caught:
        for value in m.square.map(range(11, 2000)):
            got.append(value)
    assert got == [121, 144]
    assert isinstance(caught.value.__cause__, beam.RemoteTraceback)
    assert ended(the_map(node)).cancelled
    assert len(node.tasks) < 1000  # the rest was not even sent


def test_failed_item_is_returned_on_request(module: Load) -> None:
    m = module(CODE)
    values = list(m.square.map([12, 13, 14], return_exceptions=True))
    assert values[0] == 144 and values[2] == 196
    assert isinstance(values[1], ValueError)


def test_inputs_are_consumed_lazily_and_bounded(module: Load, node: FakeNode) -> None:
    m = module(CODE)
    pulled: List[int] = []

    def endless() -> Iterator[int]:
        i = 20
        try:
            while True:
                pulled.append(i)
                yield i
                i += 1
        finally:
            closed.set()

    closed = threading.Event()
    results = m.square.map(endless(), max_in_flight=4)
    assert not pulled  # nothing happens before the first value is asked for
    assert [next(results) for _ in range(10)] == [i * i for i in range(20, 30)]
    assert len(pulled) <= 10 + 4 * 4
    results.close()
    assert closed.wait(60)
    assert ended(the_map(node)).cancelled
    with pytest.raises(StopIteration):
        next(results)


def test_generator_fed_by_its_own_results(module: Load) -> None:
    """Items do not wait for company: each input here needs the last value."""
    m = module(CODE)
    ready = threading.Semaphore(1)

    def feedback() -> Iterator[int]:
        for i in range(20, 25):
            assert ready.acquire(timeout=60)
            yield i

    got = []
    for value in m.square.map(feedback()):
        got.append(value)
        ready.release()
    assert got == [i * i for i in range(20, 25)]


def test_failing_iterator_and_unpicklable_input(module: Load, node: FakeNode) -> None:
    m = module(CODE)

    def broken() -> Iterator[int]:
        yield 20
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(m.square.map(broken()))
    with pytest.raises(beam.InvalidError, match="lock"):
        list(m.square.map([threading.Lock()]))
    with pytest.raises(beam.TooLargeError, match="input 1 weigh"):
        list(m.square.map([20, b"x" * (2 << 20)]))
    with pytest.raises(beam.InvalidError, match="max_in_flight"):
        m.square.map([1], max_in_flight=0)
    with pytest.raises(TypeError):
        m.square.map(3)
    for made in node.maps.values():
        ended(made)


def test_broken_streams_are_resumed(module: Load, node: FakeNode) -> None:
    m = module(CODE)
    node.cut_results = [0, 1, 5, 7]
    node.cut_puts = 2
    assert list(m.square.map(range(20, 120))) == [i * i for i in range(20, 120)]
    asked = [int(message.get("fromEvent", 0)) for message in node.named("Results")]
    assert asked == [0, 0, 1, 6, 13]


def test_dropping_the_results_cancels(module: Load, node: FakeNode) -> None:
    m = module(CODE)
    results = m.square.map(range(20, 10_000))
    next(results)
    del results
    gc.collect()
    assert ended(the_map(node)).cancelled


def test_lines_of_items_stay_whole(module: Load, capsys: pytest.CaptureFixture[str]) -> None:
    m = module(
        "import sys\nfrom beam import function\n@function()\ndef f(i):\n"
        "    for part in ('item ', str(i), ' done'):\n        print(part, end='', flush=True)\n    print('x', file=sys.stderr)\n"
    )
    list(m.f.map(range(10)))
    captured = capsys.readouterr()
    assert sorted(captured.out.splitlines()) == sorted("item %d done" % i for i in range(10))
    assert captured.err == "x\n" * 10


def test_async_map(module: Load, node: FakeNode) -> None:
    m = module(CODE)

    async def numbers() -> AsyncIterator[int]:
        for i in range(20, 120):
            yield i

    async def main() -> None:
        node.cut_results = [3, 4]
        assert [v async for v in m.square.async_map(numbers())] == [i * i for i in range(20, 120)]
        unordered = [v async for v in m.square.aio.map(range(20, 30), order_outputs=False)]
        assert sorted(unordered) == [i * i for i in range(20, 30)]
        with pytest.raises(ValueError, match="unlucky"):
            async for _ in m.square.async_map(range(12, 2000)):
                pass
        with pytest.raises(beam.InvalidError, match="lock"):
            async for _ in m.square.async_map([threading.Lock()]):
                pass
        values = m.square.async_map(range(20, 10_000))
        assert await values.__anext__() == 400
        await values.aclose()

    asyncio.run(main())
    last = list(node.maps.values())
    assert [ended(made).cancelled for made in last] == [False, False, True, True, True]


def the_map(node: FakeNode) -> Map:
    (made,) = node.maps.values()
    return made


def ended(made: Map) -> Map:
    with made.cv:
        assert made.cv.wait_for(lambda: made.events and made.events[-1].get("end"), 60)
    return made
