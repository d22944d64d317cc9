"""The event loops of the servers for controllers."""

from __future__ import annotations

import asyncio
import logging
import socket

from overlays.sinks.plc.loop_thread import LoopThread
from tests.support.limits import LIMIT_SECONDS


def test_writes_to_a_client_that_has_gone_are_not_logged_and_other_warnings_are(caplog):
    async def serve(end):
        gone = asyncio.Event()

        async def write(_, writer):
            writer.transport.abort()
            await asyncio.sleep(0)
            for _ in range(20):
                writer.write(b"x")
            logging.getLogger("asyncio").warning("another warning")
            gone.set()

        server = await asyncio.start_server(write, "127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        port = server.sockets[0].getsockname()[1]
        link = await loop.run_in_executor(None, socket.create_connection, ("127.0.0.1", port), LIMIT_SECONDS)
        await gone.wait()
        link.close()
        server.close()
        await end.wait()

    thread = LoopThread("loop", serve)
    thread.start()
    thread.stop()  # the coroutine looks at its end only after the writes
    assert thread.error is None
    assert [record.getMessage() for record in caplog.records] == ["another warning"]
