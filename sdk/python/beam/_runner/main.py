"""The runner's loop; started as ``python3 -m beam._runner.main``.

Reads from the environment: HANDLER, ON_START (``module:function``), RETRY_FOR
(comma list of exception names), BEAM_CLIENT_PYTHON (``3.11``); and for Context:
CONTAINER_ID, STUB_ID, STUB_TYPE, CALLBACK_URL, TIMEOUT, BIND_PORT; sets TASK_ID.
BEAM_CODE_PATH is the folder below the working directory that the client imports
from ("" = the working directory itself).

To the node on descriptor 3: ``ready`` once, or ``failed`` and exit 1; then for
each ``call`` a ``started`` and a ``result``. ``stop`` or a closed channel ends
the process with 0. SIGTERM keeps its default: it ends the process at once.
"""

import os
import signal
import sys

from beam._runner.frames import Channel, ChannelClosed

FD = 3


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        # Lines travel as they are printed, each in one write, whatever the
        # image's locale and PYTHONUNBUFFERED say.
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=False
        )
    channel = Channel(FD)

    from beam._runner import calls, loader

    code_dir = os.getcwd()
    loader.prepare_path(code_dir, os.environ.get("BEAM_CODE_PATH", ""))
    try:
        loader.check_python(os.environ.get("BEAM_CLIENT_PYTHON", ""))
        function = loader.load(os.environ.get("HANDLER", ""), code_dir)
        caller = calls.Caller(function, calls.retry_names(os.environ.get("RETRY_FOR")))
        caller.on_start_value = loader.run_on_start(
            os.environ.get("ON_START", ""), code_dir, lambda start: caller.finish(start())
        )
    except loader.LoadError as exc:
        _flush()
        channel.write({"type": "failed", "error": exc.error})
        return 1
    _flush()
    channel.write({"type": "ready", "python": "%d.%d" % sys.version_info[:2], "pid": os.getpid()})
    return serve(channel, caller)


def serve(channel: Channel, caller: "calls.Caller") -> int:  # type: ignore[name-defined]  # noqa: F821
    """Answer calls until told to stop."""
    while True:
        try:
            header, payload = channel.read()
        except ChannelClosed:
            return 0
        kind = header.get("type")
        if kind == "stop":
            return 0
        if kind != "call":
            continue  # a newer node may say more than we know
        channel.write({"type": "started", "task_id": header.get("task_id", "")})
        answer, body = caller.call(header, payload)
        channel.write(answer, body)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


if __name__ == "__main__":
    sys.exit(main())
