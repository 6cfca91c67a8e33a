from __future__ import annotations

import asyncio
import contextlib
import inspect

import pytest
from transport_wires import serving


def pytest_pyfunc_call(pyfuncitem):
    """Run the coroutine tests of this folder, each in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    given = {name: pyfuncitem.funcargs[name] for name in wanted}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**given), 20))
    return True


class Runner:
    """A loop with both transports in it, for tests that make many calls."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self.wires = self.run(self._stack.enter_async_context(serving()))

    def run(self, work):
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture
def runner():
    made = Runner()
    yield made
    made.close()
