"""Clients and connections of score streams that do what no library would."""

import contextlib
import socket
import threading
import time

from r2m.v1 import r2m_pb2 as pb


class Proxy:
    """Between a client and the server, until it is cut."""

    def __init__(self, url):
        self._target = url.removeprefix("grpc://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            near, _ = self._listener.accept()
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._pump, args=(source, target)))
                self._threads[-1].start()

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def cut(self):
        for one in [self._listener, *self._ends]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for one in self._threads:
            one.join()


class Raw:
    """Writes any message; the blocking client below it is only a connection."""

    def __init__(self, client, run):
        self._parts = []
        self._client, self._run = client, run

    def announce(self, sample, **changes):
        message = pb.Sample(id=sample.id, prompt=sample.prompt, response=sample.response)
        message.feedback.dtype = changes.get("dtype", "float32")
        message.feedback.shape.extend(changes.get("shape", sample.hidden_states.shape))
        self._parts.append(pb.ScoreStreamRequest(sample=message))
        return sample.hidden_states.tobytes()

    def chunk(self, name, data):
        self._parts.append(pb.ScoreStreamRequest(chunk=pb.Chunk(id=name, data=data)))

    def pause(self, seconds):
        self._parts.append(seconds)

    def answers(self):
        def messages():
            yield pb.ScoreStreamRequest(open=pb.ScoreRequest(run=self._run)).SerializeToString()
            for part in self._parts:
                if isinstance(part, float):
                    time.sleep(part)
                else:
                    yield part.SerializeToString()

        channel = self._client._transport._channel
        call = channel.stream_stream("/r2m.v1.RewardModelService/ScoreStream")(
            messages(), timeout=20
        )
        parts = [pb.ScoreStreamResponse.FromString(raw) for raw in call]
        assert parts[0].opened.run == self._run
        return {part.score.id: part.score for part in parts[1:]}
