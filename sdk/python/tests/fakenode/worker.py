"""The real runner as a subprocess, without a container around it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from beam._runner.frames import Channel, ChannelClosed, ProtocolError

LIMIT = 60.0  # generous: the machine may be very slow

# Puts the socket on descriptor 3, then becomes the runner.
_LAUNCH = (
    "import os,sys; fd=int(sys.argv[1]); os.dup2(fd,3); fd==3 or os.close(fd); "
    "os.set_inheritable(3,True); os.execv(sys.argv[2],sys.argv[2:])"
)


class Ended(Exception):
    """The runner ended instead of answering."""


class Runner:
    """One runner process; output is collected per descriptor."""

    def __init__(
        self,
        bundle: Path,
        code: Path,
        handler: str,
        env: Optional[Dict[str, str]] = None,
        python: str = sys.executable,
        on_output: Optional[Callable[[int, bytes], None]] = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        environ = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "PYTHONPATH": str(bundle),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HANDLER": handler,
            "CONTAINER_ID": "container-1",
            "STUB_ID": "stub-1",
            "STUB_TYPE": "function",
            "TIMEOUT": "3600",
        }
        environ.update(env or {})
        argv = [sys.executable, "-S", "-c", _LAUNCH, str(theirs.fileno())]
        argv += [python, "-m", "beam._runner.main"]
        self.process = subprocess.Popen(
            argv,
            cwd=str(code),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        self.socket = ours
        self.channel = Channel(ours.detach())
        self.output: Dict[int, bytes] = {1: b"", 2: b""}
        self.on_output = on_output
        assert self.process.stdout is not None and self.process.stderr is not None
        self._pipes = {self.process.stdout.fileno(): 1, self.process.stderr.fileno(): 2}

    def read(self) -> Tuple[Dict[str, Any], bytes]:
        """The next frame, after all output written before it; never waits for ever."""
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            while not self._wait(self.channel.fileno()):
                pass
            return self.channel.read()
        except (ChannelClosed, ProtocolError, OSError) as exc:
            raise Ended("runner ended: %r\n%s" % (exc, self.output[2].decode())) from exc
        finally:
            timer.cancel()

    def _wait(self, fd: int = -1) -> bool:
        # One turn: takes output; true when fd is readable and there is no output before it.
        watched = [*self._pipes, fd] if fd >= 0 else [*self._pipes]
        readable, _, _ = select.select(watched, [], [])
        outputs = [pipe for pipe in readable if pipe in self._pipes]
        for pipe in outputs:
            part = os.read(pipe, 65536)
            name = self._pipes[pipe]
            if not part:
                del self._pipes[pipe]
            self.output[name] += part
            if part and self.on_output is not None:
                self.on_output(name, part)
        return not outputs and fd in readable

    def call(self, payload: bytes, task_id: str = "task-1", format_: str = "pickle") -> Tuple[Dict[str, Any], bytes]:
        """One call; gives the result frame."""
        self.channel.write({"type": "call", "task_id": task_id, "attempt": 1, "format": format_}, payload)
        header, _ = self.read()
        assert header == {"type": "started", "task_id": task_id}
        return self.read()

    def wait(self) -> int:
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        while self._pipes:
            self._wait()
        timer.cancel()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return self.process.wait(LIMIT)

    def close(self) -> None:
        """Kill the runner and everything it started."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, 9)
            except ProcessLookupError:
                pass
        self._pipes = {}  # a child of the runner may hold them open
        self.wait()
        self.channel.close()


def write_files(folder: Path, files: Dict[str, str]) -> Path:
    """Write a small source tree."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def lines(data: bytes) -> List[str]:
    return data.decode().splitlines()
