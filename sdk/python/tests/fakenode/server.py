"""The RPCs that the SDK needs, over Connect/JSON, with real runners behind them."""

from __future__ import annotations

import base64
import io
import itertools
import json
import queue
import select
import socket
import struct
import tempfile
import threading
import zipfile
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from fakenode.worker import LIMIT, Ended, Runner

TOKEN = "t" * 64


class Refusal(Exception):
    """An error answer with our detail."""

    def __init__(self, connect: str, code: str, message: str, hint: str = "", debug: bool = True) -> None:
        super().__init__(message)
        strings = ((1, code), (2, message), (3, hint))
        raw = b"".join(bytes([n << 3 | 2, len(t.encode())]) + t.encode() for n, t in strings if t)
        detail: Dict[str, Any] = {"type": "beammesh.v1.ErrorDetail", "value": base64.b64encode(raw).decode().rstrip("=")}
        if debug:
            detail["debug"] = {"code": code, "message": message, "hint": hint}
        self.body = {"code": connect, "message": message, "details": [detail]}


class Task:
    """One task: its log, and its outcome when it ended."""

    def __init__(self, task_id: str, headless: bool) -> None:
        self.id = task_id
        self.headless = headless
        self.status = "PENDING"
        self.outcome: Dict[str, Any] = {}
        self.log: List[Tuple[int, bytes]] = []
        self.cv = threading.Condition()
        self.runner: Optional[Runner] = None
        self.cancelled = False

    def output(self, fd: int, data: bytes) -> None:
        with self.cv:
            self.log.append((fd, data))
            self.cv.notify_all()

    def end(self, status: str, **fields: Any) -> None:
        with self.cv:
            self.status = status
            self.runner = None  # it goes on to other tasks
            self.outcome = {"taskId": self.id, "status": status, "nodeName": "box1", "nodeId": "n1", "attempt": 1, **fields}
            self.cv.notify_all()

    @property
    def ended(self) -> bool:
        return bool(self.outcome)

    def cancel(self) -> bool:
        with self.cv:
            if self.ended or self.cancelled:
                return False
            self.cancelled = True
            if self.runner is not None:
                self.runner.process.terminate()
        return True


class Map:
    """One map: its events."""

    def __init__(self, map_id: str, stub: Dict[str, Any], credit: int, headless: bool) -> None:
        self.id, self.stub, self.limit, self.headless = map_id, stub, credit, headless
        self.events: List[Dict[str, Any]] = []
        self.cv = threading.Condition()
        self.next = 0
        self.open = 0
        self.last = False
        self.cancelled = False
        self.tasks: List[Task] = []

    def event(self, index: int, **what: Any) -> None:
        # Called with cv held. 64-bit numbers as strings and zeros left out, as protobuf does.
        event: Dict[str, Any] = dict(what)
        if self.events:
            event["event"] = str(len(self.events))
        if index:
            event["index"] = str(index)
        self.events.append(event)
        self.cv.notify_all()

    def maybe_end(self) -> None:
        if (self.last or self.cancelled) and self.open == 0 and not (self.events and self.events[-1].get("end")):
            self.event(0, end=True)


class FakeNode:
    """A node with a few workers; use as a context manager."""

    def __init__(self, bundle: Path, workers: int = 2, credit: int = 64) -> None:
        self.bundle = bundle
        self.credit = credit
        self.calls: List[Tuple[str, Dict[str, Any]]] = []
        self.objects: Dict[str, bytes] = {}
        self.stubs: Dict[str, Dict[str, Any]] = {}
        self.images: Dict[str, Dict[str, Any]] = {}
        self.tasks: Dict[str, Task] = {}
        self.maps: Dict[str, Map] = {}
        self.build: List[Dict[str, Any]] = []  # messages of BuildImage
        self.build_error: Optional[Refusal] = None  # that ends BuildImage
        self.refuse: Dict[str, Refusal] = {}  # method → error
        self.cut_results: List[int] = []  # break a Results stream after so many events
        self.cut_puts = 0  # break so many Puts after they were taken
        self.notes: List[str] = []
        self._ids = itertools.count(1)
        self._slots = threading.Semaphore(workers)
        self._mu = threading.Lock()
        self._closed = False
        self._idle: Dict[str, "deque[Runner]"] = {}
        self._runners: List[Runner] = []
        self._dir = tempfile.TemporaryDirectory()
        node = self

        class Handler(_Handler):
            fake = node

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "FakeNode":
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT)
        with self._mu:
            self._closed = True
            runners, self._runners = self._runners, []
        for runner in runners:
            runner.close()
        self._dir.cleanup()

    def named(self, method: str) -> List[Dict[str, Any]]:
        """The requests of a method so far."""
        return [message for name, message in self.calls if name.endswith("/" + method)]

    def new_task(self, headless: bool) -> Task:
        task = Task("task-%d" % next(self._ids), headless)
        self.tasks[task.id] = task
        return task

    # What runs a call. One thread per call, as many runners as there are workers.

    def run(self, stub: Dict[str, Any], task: Task, payload: bytes, done: Callable[[Task], None] = lambda task: None) -> None:
        threading.Thread(target=self._run, args=(stub, task, payload, done), daemon=True).start()

    def _run(self, stub: Dict[str, Any], task: Task, payload: bytes, done: Callable[[Task], None]) -> None:
        with self._slots:
            try:
                self._attempt(stub, task, payload)
            except Exception as exc:  # of the fixture: show it as the task's end
                task.end("ERROR", error={"code": "internal", "message": repr(exc)})
        done(task)

    def _attempt(self, stub: Dict[str, Any], task: Task, payload: bytes) -> None:
        if task.cancelled:
            task.end("CANCELLED", error={"code": "cancelled", "message": "the task was cancelled"})
            return
        with self._mu:
            idle = self._idle.setdefault(stub["id"], deque())
            runner = idle.pop() if idle else None
        warm = runner is not None
        if runner is None:
            runner = self._start(stub)
            runner.on_output = task.output
            header, _ = runner.read()
            if header["type"] == "failed":
                runner.wait()
                status = {"code": "python_mismatch" if header["error"]["kind"] == "python_mismatch" else "failed"}
                task.end("ERROR", error={**status, "message": header["error"]["message"]}, exception=header["error"])
                return
        runner.on_output = task.output
        with task.cv:
            task.runner = runner
            task.status = "RUNNING"
            if task.cancelled:
                runner.process.terminate()
        call = {"type": "call", "task_id": task.id, "attempt": 1, "format": "pickle"}
        try:
            runner.channel.write(call, payload)
            header, _ = runner.read()
            header, body = runner.read()
        except (Ended, OSError):
            code = runner.wait()
            if task.cancelled:
                task.end("CANCELLED", error={"code": "cancelled", "message": "the task was cancelled"})
            else:
                task.end("ERROR", error={"code": "failed", "message": "the process ended with exit code %d" % code, "hint": "see its output"})
            return
        fields: Dict[str, Any] = {"warm": warm, "phases": [{"name": "run", "durationMs": str(header["duration_ms"])}]}
        if self.notes:
            fields["notes"] = self.notes
        if header["status"] == "ok":
            task.end("COMPLETE", result=base64.b64encode(body).decode(), resultFormat=header["format"], **fields)
        else:
            told = dict(header["error"], pickle=base64.b64encode(body).decode())
            task.end("ERROR", error={"code": "failed", "message": told["message"]}, exception=told, **fields)
        if task.cancelled:  # it has been told to end: not for the next task
            runner.wait()
            return
        with self._mu:
            self._idle[stub["id"]].append(runner)

    def _start(self, stub: Dict[str, Any]) -> Runner:
        code = Path(self._dir.name) / stub["id"]
        with self._mu:
            if not code.exists():
                with zipfile.ZipFile(io.BytesIO(self.objects[stub["objectId"]])) as z:
                    z.extractall(code)
        env = dict(entry.split("=", 1) for entry in stub.get("env", []))
        env["ON_START"] = stub.get("onStart", "")
        env["RETRY_FOR"] = ",".join(stub.get("retryFor", []))
        env["BEAM_CLIENT_PYTHON"] = stub.get("clientPython", "")
        env.update(GATEWAY_HOST="127.0.0.1", GATEWAY_PORT=str(self.port), BEAM_TOKEN=TOKEN, BEAM_QUIET="1")
        with self._mu:
            if self._closed:
                raise Ended("the node is gone")
            runner = Runner(self.bundle, code, stub["handler"], env=env)
            self._runners.append(runner)
        return runner

    # Unary RPCs: message → message.

    def head_object(self, m: Dict[str, Any]) -> Dict[str, Any]:
        known = m["hash"] in self.objects
        return {"ok": True, "exists": known, "objectId": m["hash"]} if known else {"ok": True}

    def create_object(self, m: Dict[str, Any]) -> Dict[str, Any]:
        url = "http://127.0.0.1:%d/upload/%s?signature=x" % (self.port, m["hash"])
        return {"ok": True, "objectId": m["hash"], "presignedUrl": url, "putHeaders": {"X-Upload": "yes"}}

    def verify_image(self, m: Dict[str, Any]) -> Dict[str, Any]:
        key = json.dumps(m, sort_keys=True)
        return {"imageId": "image-%08x" % (hash(key) & 0xFFFFFFFF), "valid": True, "exists": not self.build}

    def get_or_create_stub(self, m: Dict[str, Any]) -> Dict[str, Any]:
        stub = dict(m, id="stub-%d" % next(self._ids))
        self.stubs[stub["id"]] = stub
        return {"ok": True, "stubId": stub["id"]}

    def stop_tasks(self, m: Dict[str, Any]) -> Dict[str, Any]:
        for task_id in m["taskIds"]:
            if task_id not in self.tasks:
                raise Refusal("not_found", "not_found", "no task %s" % task_id, "see 'beam task list'")
            self.tasks[task_id].cancel()
        return {"ok": True}

    def get_task(self, m: Dict[str, Any]) -> Dict[str, Any]:
        if m["taskId"] not in self.tasks:
            raise Refusal("not_found", "not_found", "no task %s" % m["taskId"], "see 'beam task list'", debug=False)
        task = self.tasks[m["taskId"]]
        told: Dict[str, Any] = {"id": task.id, "status": task.status}
        if task.ended:
            told["outcome"] = task.outcome
        return told

    def map_open(self, m: Dict[str, Any]) -> Dict[str, Any]:
        credit = min(self.credit, m.get("maxInFlight") or self.credit)
        made = Map("map-%d" % next(self._ids), self.stubs[m["stubId"]], credit, bool(m.get("headless")))
        self.maps[made.id] = made
        return {"mapId": made.id, "credit": credit}

    def map_put(self, m: Dict[str, Any]) -> Dict[str, Any]:
        made = self.maps[m["mapId"]]
        items = [base64.b64decode(item) for item in m.get("items", [])]
        first = int(m.get("firstIndex", 0))
        with made.cv:
            if made.cancelled:
                raise Refusal("canceled", "cancelled", "the map was cancelled")
            if first == made.next:  # else a repeated one
                assert len(items) <= made.limit - made.open, "above the credit"
                made.next += len(items)
                made.open += len(items)
                for i, payload in enumerate(items):
                    task = self.new_task(made.headless)
                    made.tasks.append(task)
                    self.run(made.stub, task, payload, self._done(made, first + i))
            if m.get("last"):
                made.last = True
                made.maybe_end()
            elif m.get("waitMs"):
                made.cv.wait_for(lambda: made.open < made.limit or made.cancelled, m["waitMs"] / 1000)
            answer = {"credit": made.limit - made.open} if made.open < made.limit else {}
        with self._mu:
            if items and self.cut_puts > 0:
                self.cut_puts -= 1
                raise ConnectionAbortedError()
        return answer

    def _done(self, made: Map, index: int) -> Callable[[Task], None]:
        def done(task: Task) -> None:
            with made.cv:
                for fd, data in task.log:
                    made.event(index, log={"taskId": task.id, "fd": fd, "data": base64.b64encode(data).decode()})
                made.event(index, outcome=task.outcome)
                made.open -= 1
                made.maybe_end()

        return done

    def map_cancel(self, m: Dict[str, Any]) -> Dict[str, Any]:
        made = self.maps[m["mapId"]]
        with made.cv:
            made.cancelled = True
            tasks = list(made.tasks)
        count = sum([task.cancel() for task in tasks])
        with made.cv:
            made.maybe_end()
        return {"cancelled": count}

    UNARY = {
        "gateway.GatewayService/HeadObject": head_object,
        "gateway.GatewayService/CreateObject": create_object,
        "gateway.GatewayService/GetOrCreateStub": get_or_create_stub,
        "gateway.GatewayService/StopTasks": stop_tasks,
        "image.ImageService/VerifyImageBuild": verify_image,
        "beammesh.v1.NodeService/GetTask": get_task,
        "beammesh.v1.CallService/Open": map_open,
        "beammesh.v1.CallService/Put": map_put,
        "beammesh.v1.CallService/Cancel": map_cancel,
    }


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave in the middle are what some tests are about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeNode

    def log_message(self, *args: Any) -> None:
        pass

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["x-upload"] == "yes"
        self.fake.objects[self.path.split("/")[2].split("?")[0]] = data
        self._answer(200, b"")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        method = self.path[1:]
        stream = self.headers["content-type"] == "application/connect+json"
        message = json.loads(raw[5:] if stream else raw)
        self.fake.calls.append((method, message))
        try:
            if self.headers["authorization"] != "Bearer " + TOKEN:
                raise Refusal("unauthenticated", "unauthenticated", "the token is not valid here", "'beam token create' makes one")
            if method in self.fake.refuse:
                raise self.fake.refuse[method]
            if stream:
                self._stream(method, message)
            else:
                self._answer(200, json.dumps(FakeNode.UNARY[method](self.fake, message)).encode())
        except Refusal as exc:
            if stream:
                self._start_stream()
                self._envelope({"error": exc.body}, 2)
                self._chunk(b"")
            else:
                status = {"unauthenticated": 401, "not_found": 404}.get(exc.body["code"], 400)
                self._answer(status, json.dumps(exc.body).encode())
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _start_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/connect+json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _envelope(self, message: Dict[str, Any], flags: int = 0) -> None:
        body = json.dumps(message).encode()
        self._chunk(struct.pack(">BI", flags, len(body)) + body)

    def _stream(self, method: str, m: Dict[str, Any]) -> None:
        name = method.split("/")[1]
        self._start_stream()
        {"FunctionInvoke": self._invoke, "BuildImage": self._build, "Results": self._results, "TaskLogs": self._logs}[name](m)
        self._envelope({}, 2)
        self._chunk(b"")

    def _build(self, m: Dict[str, Any]) -> None:
        for message in self.fake.build:
            self._envelope(message)
        if self.fake.build_error is not None:
            self._envelope({"error": self.fake.build_error.body}, 2)

    def _invoke(self, m: Dict[str, Any]) -> None:
        fake = self.fake
        task = fake.new_task(bool(m.get("headless")))
        self._envelope({"taskId": task.id})
        fake.run(fake.stubs[m["stubId"]], task, base64.b64decode(m["args"]))
        with _Watch(self.connection, lambda: task.headless or task.cancel()):
            self._follow(task, lambda fd, data: {"output": data.decode(), "fd": fd})
        outcome = {key: value for key, value in task.outcome.items() if key != "result"}
        last: Dict[str, Any] = {"done": True, "outcome": outcome, "result": task.outcome.get("result", "")}
        if task.status != "COMPLETE":
            last["exitCode"] = 1
        self._envelope(last)

    def _logs(self, m: Dict[str, Any]) -> None:
        task = self.fake.tasks[m["taskId"]]
        encode = lambda fd, data: {"taskId": task.id, "fd": fd, "data": base64.b64encode(data).decode()}  # noqa: E731
        self._follow(task, encode)

    def _follow(self, task: Task, encode: Callable[[int, bytes], Dict[str, Any]]) -> None:
        at = 0
        while True:
            with task.cv:
                task.cv.wait_for(lambda: len(task.log) > at or task.ended)
                new, ended = task.log[at:], task.ended
            for fd, data in new:
                self._envelope(encode(fd, data))
            at += len(new)
            if ended and not new:
                return

    def _results(self, m: Dict[str, Any]) -> None:
        made = self.fake.maps[m["mapId"]]
        at = int(m.get("fromEvent", 0))
        with self.fake._mu:
            cut = self.fake.cut_results.pop(0) if self.fake.cut_results else -1
        self._envelope({"keepalive": True})
        sent = 0
        while True:
            with made.cv:
                made.cv.wait_for(lambda: len(made.events) > at)
                event = made.events[at]
            if sent == cut:
                raise ConnectionAbortedError()
            self._envelope(event)
            sent += 1
            at += 1
            if event.get("end"):
                return


class _Watch:
    """Calls gone when the client closes the connection meanwhile."""

    def __init__(self, connection: socket.socket, gone: Callable[[], Any]) -> None:
        self._connection, self._gone = connection, gone
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        readable, _, _ = select.select([self._connection, self._woken], [], [])
        if self._woken not in readable:
            self._gone()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: Any) -> None:
        self._wake.close()
        self._thread.join(LIMIT)
        self._woken.close()
