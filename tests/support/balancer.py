"""What a Kubernetes Service is to its callers: one address, and behind it whichever server answers."""

import asyncio
import itertools
import threading
from collections.abc import Sequence
from contextlib import suppress

_CHUNK = 65536


class Balancer:
    """Passes each connection on to the next of its targets that takes it. Runs in a thread of its own."""

    def __init__(self) -> None:
        self.targets: Sequence[tuple[str, int]] = ()
        self._turn = itertools.count()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(self._turn)
        for offset in range(len(self.targets)):
            host, port = self.targets[(first + offset) % len(self.targets)]
            with suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(host, port)
                await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
                return
        writer.close()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await source.read(_CHUNK):
            sink.write(chunk)
            await sink.drain()
    with suppress(OSError):
        sink.close()
