"""The parts without I/O: codecs, parsers, settings, files."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import threading
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import beam
import pytest
from beam import _config, _connect, _console, _http, _image, _mapstate, _sync, _types
from beam._settings import Settings


def split(data: bytes, size: int) -> List[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


RESPONSES = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: close\r\n\r\n", 200, b"", False),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 1\r\n\r\nx", 201, b"x", True),
    (
        b"HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\n",
        404,
        b"abc0123456789",
        True,
    ),
]


@pytest.mark.parametrize("raw, status, body, reusable", RESPONSES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_responses_in_any_pieces(raw: bytes, status: int, body: bytes, reusable: bool, size: int) -> None:
    parser = _http.ResponseParser()
    assert parser.fresh
    got = b"".join(parser.feed(part) for part in split(raw, size))
    assert (parser.status, got, parser.done, parser.reusable) == (status, body, True, reusable)


def test_response_until_close() -> None:
    parser = _http.ResponseParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nab") == b"ab" and not parser.done
    parser.eof()
    assert parser.done and not parser.reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * (65 << 10),
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 5000,
    ],
)
def test_no_http(raw: bytes) -> None:
    with pytest.raises(_http.ConnectionLost):
        _http.ResponseParser().feed(raw)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"])
def test_response_cut_short(raw: bytes) -> None:
    parser = _http.ResponseParser()
    if raw:
        parser.feed(raw)
    with pytest.raises(_http.ConnectionLost) as caught:
        parser.eof()
    assert caught.value.clean is (raw == b"")


def test_header_injection_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        _http.request_head("POST", "/x", "h", {"authorization": "Bearer a\r\nx: y"}, 0)


def test_kept_connection_that_was_closed_is_replaced() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    served = []

    def serve() -> None:
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                served.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    transport = _http.Transport("127.0.0.1", server.getsockname()[1])
    assert transport.request("POST", "/a", {}, b"1").read(10) == b"ok"
    assert transport.request("POST", "/a", {}, b"2").read(10) == b"ok"
    thread.join(60)
    transport.close()
    assert len(served) == 2


def test_silent_node_ends_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport = _http.Transport("127.0.0.1", server.getsockname()[1])
        with pytest.raises(beam.DeadlineError):
            transport.request("POST", "/a", {}, b"1", timeout=0.05)


def test_stream_decoder_in_any_pieces() -> None:
    data = _connect.envelope({"a": 1}) + _connect.envelope({}) + struct.pack(">BI", 2, 2) + b"{}"
    for size in (1, 3, 100):
        decoder = _connect.StreamDecoder()
        got = [message for part in split(data, size) for message in decoder.feed(part)]
        assert got == [{"a": 1}, {}] and decoder.ended and decoder.error is None


def test_stream_errors_and_limits() -> None:
    decoder = _connect.StreamDecoder()
    body = json.dumps({"error": {"code": "resource_exhausted", "message": "full"}}).encode()
    decoder.feed(struct.pack(">BI", 2, len(body)) + body)
    assert isinstance(decoder.error, beam.CapacityError)
    for head in (struct.pack(">BI", 1, 2) + b"{}", struct.pack(">BI", 0, 1 << 30)):
        with pytest.raises(beam.BeamError):
            _connect.StreamDecoder().feed(head)


def test_answers_that_are_not_ours() -> None:
    error = _connect.unary_error(404, b"404 page not found\n")
    assert isinstance(error, beam.UnsupportedError) and "is that the port of a node?" in error.hint
    assert isinstance(_connect.unary_error(401, b""), beam.AuthError)
    detail = {"type": "beammesh.v1.ErrorDetail", "value": "/////w"}  # no protobuf
    error = _connect.error_of({"code": "internal", "message": "m", "details": [detail]})
    assert (error.code, error.message) == ("internal", "m")


def test_base64_as_protobuf_allows() -> None:
    data = bytes(range(256))
    for text in (_connect.b64(data), base64.urlsafe_b64encode(data).decode(), _connect.b64(data).rstrip("=")):
        assert _connect.unb64(text) == data
    assert _connect.unb64(None) == b""


CONFIG = "[default]\ntoken = from-file\ngateway_host = box1\ngateway_port = 2993\n\n[lab]\ntoken = 50%off\ngateway_host = box2\n"


def test_config_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "GATEWAY_HOST GATEWAY_PORT API_HOST API_PORT BEAM_TOKEN BETA9_GATEWAY_HOST BETA9_GATEWAY_PORT BETA9_TOKEN BEAM_CONTEXT"
    for name in names.split():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONFIG_PATH", str(tmp_path / "none.ini"))
    assert _config.resolve() == _config.Config("127.0.0.1", 1993, "127.0.0.1", 1994, "")
    with pytest.raises(beam.NotFoundError, match="no context 'lab'"):
        _config.resolve(context="lab")
    (tmp_path / "c.ini").write_text(CONFIG)
    monkeypatch.setenv("CONFIG_PATH", str(tmp_path / "c.ini"))
    assert _config.resolve() == _config.Config("box1", 2993, "box1", 1994, "from-file")
    monkeypatch.setenv("BETA9_TOKEN", "beta9")
    monkeypatch.setenv("GATEWAY_HOST", "env")
    assert _config.resolve() == _config.Config("env", 2993, "env", 1994, "beta9")
    monkeypatch.setenv("BEAM_TOKEN", "beam")
    assert _config.resolve().token == "beam"
    assert _config.resolve(host="arg", port=1, token="arg") == _config.Config("arg", 1, "arg", 1994, "arg")
    assert _config.resolve(context="lab").token == "50%off"
    with pytest.raises(beam.NotFoundError, match="there: default, lab"):
        _config.resolve(context="other")
    monkeypatch.setenv("GATEWAY_PORT", "99999")
    with pytest.raises(beam.InvalidError, match="GATEWAY_PORT=99999"):
        _config.resolve()
    (tmp_path / "c.ini").write_text("token = x\n")
    with pytest.raises(beam.InvalidError, match="cannot read"):
        _config.resolve()


@pytest.mark.parametrize(
    "host, port, tls",
    [("box", 443, True), ("box", 8443, True), ("box", 1993, False), ("127.0.0.1", 37443, False), ("localhost", 443, False)],
)
def test_tls_by_port(host: str, port: int, tls: bool) -> None:
    assert _config.Config(host=host, port=port).tls is tls


def settings(**given: Any) -> Settings:
    @beam.function(**given)
    def f() -> None: ...

    return f._settings


@pytest.mark.parametrize(
    "given, part",
    [
        ({"cpu": 0.05}, "cpu=0.05"),
        ({"cpu": 65}, "0.1 and 64"),
        ({"cpu": "lots"}, "cpu='lots'"),
        ({"cpu": "64001m"}, "cpu="),
        ({"cpu": True}, "cpu=True"),
        ({"cpu": float("nan")}, "cpu=nan"),
        ({"memory": 0}, "memory=0"),
        ({"memory": "1Ti"}, "1Ti"),
        ({"memory": "-1Gi"}, "memory="),
        ({"memory": 1.5}, "memory=1.5"),
        ({"gpu": 5}, "gpu=5"),
        ({"gpu": "H100", "gpu_count": -1}, "gpu_count=-1"),
        ({"gpu_count": 1}, "without gpu"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": -2}, "timeout=-2"),
        ({"retries": -1}, "retries=-1"),
        ({"retry_for": ["X"]}, "retry_for"),
        ({"callback_url": "ftp://x"}, "callback_url"),
        ({"env": ["NOVALUE"]}, "NAME=value"),
        ({"image": "debian"}, "no Image"),
        ({"on_start": 3}, "on_start"),
        ({"block_network": True, "allow_list": ["10.0.0.0/8"]}, "exclude"),
        ({"allow_list": ["here"]}, "no network"),
    ],
)
def test_parameters_that_cannot_be(given: Dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part.replace("(", r"\(")) as caught:
        settings(**given)
    assert isinstance(caught.value, beam.InvalidError) and caught.value.exit_status == 2


def test_parameters_as_they_are_meant() -> None:
    s = settings(cpu="64000m", memory="1.1gi", gpu=["any", beam.GpuType.H100], timeout=-1, keep_warm_seconds=-300)
    assert (s.cpu, s.memory, s.gpu, s.gpu_count, s.timeout, s.keep_warm_seconds) == (64000, 1127, "any,H100", 1, -1, 300.0)
    s = settings(keep_warm_seconds=-1, allow_list=["10.1.2.3"])
    assert (s.cpu, s.memory, s.retries, s.timeout) == (125, 128, 3, 3600)
    assert (s.keep_warm_seconds, s.allow_list) == (-1.0, ["10.1.2.3/32"])
    with pytest.raises(ValueError):
        beam.TaskPolicy(ttl=86401)
    with pytest.raises(TypeError):
        beam.function(unknown=1)  # type: ignore[call-overload]


def test_decorator_without_parentheses() -> None:
    @beam.function
    def f(x: int) -> int:
        "Doc."
        return x

    assert f.local(3) == 3 and f.__doc__ == "Doc." and f.__name__ == "f"
    assert beam.Function is beam.function


def test_image_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more.txt").write_text("scipy==1.0 # why\n")
    (tmp_path / "req.txt").write_text("# all\nnumpy>=1,\\\n<2\n\n-r more.txt\n--extra-index-url https://x/#egg\n")
    image = beam.Image("3.12", str(tmp_path / "req.txt"), ["echo 1"], base_image="docker.io/a:b", env_vars={"A": "1"})
    image.add_python_packages(["torch"]).add_commands(["echo 2"]).with_envs("B=x=y").build_with_gpu("A10G")
    assert image.spec() == {
        "pythonVersion": "python3.12",
        "pythonPackages": ["numpy>=1, <2", "scipy==1.0", "--extra-index-url https://x/#egg"],
        "commands": ["echo 1"],
        "buildSteps": [{"type": "pip", "command": "torch"}, {"type": "shell", "command": "echo 2"}],
        "envVars": ["A=1", "B=x=y"],
        "existingImageUri": "docker.io/a:b",
        "gpu": "A10G",
    }
    monkeypatch.setenv("REG_USER", "u")
    assert _image._credentials(["REG_USER"]) == {"REG_USER": "u"} and _image._credentials({"K": "v"}) == {"K": "v"}
    with pytest.raises(beam.InvalidError, match="REG_PASS not set"):
        _image._credentials(["REG_USER", "REG_PASS"])


@pytest.mark.parametrize(
    "given, part",
    [
        ({"python_version": "ruby"}, "no Python version"),
        ({"python_version": "2.7"}, "no Python version"),
        ({"python_packages": "nosuch.txt"}, "cannot read requirements file nosuch.txt"),
        ({"python_packages": [""]}, "empty"),
        ({"commands": "echo hi"}, "list of strings"),
        ({"commands": [" "]}, "empty"),
        ({"env_vars": "NOVALUE"}, "NAME=value"),
    ],
)
def test_images_that_cannot_be(given: Dict[str, Any], part: str) -> None:
    with pytest.raises(beam.InvalidError, match=part):
        beam.Image(**given)


def test_requirements_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("-r a.txt\n")
    with pytest.raises(beam.InvalidError, match="includes itself"):
        beam.Image(python_packages=str(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_text("-e .\n")
    with pytest.raises(beam.InvalidError, match="cannot be used"):
        beam.Image(python_packages=str(tmp_path / "b.txt"))


def archived(root: Path, extra: Optional[Dict[str, bytes]] = None) -> "tuple[str, Dict[str, bytes]]":
    file = io.BytesIO()
    digest, size = _sync.archive(str(root), file, extra)
    assert size == len(file.getvalue())
    with zipfile.ZipFile(file) as z:
        assert [i.filename for i in z.infolist()] == sorted(i.filename for i in z.infolist())
        assert all(i.compress_type == zipfile.ZIP_STORED and i.date_time == (1980, 1, 1, 0, 0, 0) for i in z.infolist())
        return digest, {i.filename: z.read(i) for i in z.infolist()}


def test_archive_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        root = tmp_path / name
        (root / "pkg").mkdir(parents=True)
        (root / "b.py").write_text("b")
        (root / "a.py").write_text("a")
        (root / "pkg" / "run.sh").write_text("#!")
        (root / "pkg" / "run.sh").chmod(0o700)
        os.utime(root / "a.py", (len(digests), 5))
        digests.append(archived(root)[0])
    assert digests[0] == digests[1]
    (tmp_path / "two" / "b.py").write_text("c")
    assert archived(tmp_path / "two")[0] != digests[0]


def test_ignored_files_stay_here(tmp_path: Path) -> None:
    for name in ("app.py", ".git/config", "__pycache__/a.pyc", "data/big.bin", "data/keep.bin", "x.log", "sub/x.log", ".env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    _sync.ignore(str(tmp_path))
    assert sorted(archived(tmp_path)[1]) == ["app.py", "data/big.bin", "data/keep.bin", "sub/x.log", "x.log"]
    (tmp_path / ".beamignore").write_text("*.log\n!sub/x.log\ndata/*\n!data/keep.bin\n.*\n__pycache__\n")
    _sync.ignore(str(tmp_path))  # does not overwrite
    assert sorted(archived(tmp_path, {"f.pkl": b"p"})[1]) == ["app.py", "data/keep.bin", "f.pkl", "sub/x.log"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.bin").write_text("weights")
    root = tmp_path / "root"
    root.mkdir()
    (root / "model.bin").symlink_to(outside / "model.bin")
    (root / "models").symlink_to(outside)
    (root / "again").symlink_to(root)
    (root / "nowhere").symlink_to(root / "missing")
    (root / "app.py").write_text("x")
    assert archived(root)[1] == {"app.py": b"x", "model.bin": b"weights", "models/model.bin": b"weights"}


def test_too_much_code_names_what_is_big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAM_SYNC_LIMIT_MIB", "1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(b"x" * (2 << 20))
    (tmp_path / "small.py").write_text("x")
    with pytest.raises(beam.TooLargeError, match=r"limit is 1 MiB.*biggest: data/ 2\.0 MiB") as caught:
        _sync.archive(str(tmp_path), io.BytesIO())
    assert ".beamignore" in caught.value.hint


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").write_text("x")

    def denied(path: str, *mode: str, **how: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *mode, **how)  # type: ignore[call-overload]

    # Not by chmod: for root everything is readable.
    monkeypatch.setattr(_sync, "open", denied, raising=False)
    with pytest.raises(beam.InvalidError, match="cannot read .*locked"):
        _sync.archive(str(tmp_path), io.BytesIO())


def test_map_inputs_keep_within_credit_and_bytes() -> None:
    inputs = _mapstate.Inputs("m", 3)
    for i in range(3):
        assert inputs.room()
        inputs.add(i)
    assert not inputs.room() and inputs.due()
    put = inputs.batch()
    assert put["firstIndex"] == 0 and len(put["items"]) == 3 and not inputs.room()
    assert inputs.due()  # no credit: ask for some and wait
    waiting = inputs.batch()
    assert waiting == {"mapId": "m", "firstIndex": 3, "waitMs": _mapstate.WAIT_MS}
    assert inputs.answered(waiting, {"credit": 300})
    big = b"x" * (700 << 10)
    for _ in range(2):
        inputs.add(big)
    assert len(inputs.batch()["items"]) == 1  # 1 MiB in all
    inputs.exhausted = True
    last = inputs.batch()
    assert last["last"] is True and len(last["items"]) == 1 and last["firstIndex"] == 4
    assert not inputs.answered(last, {})


def test_map_inputs_do_not_run_ahead_of_the_consumer() -> None:
    inputs = _mapstate.Inputs("m", 2)
    for _ in range(4):
        inputs.add(1)
        inputs.add(1)
        inputs.answered(inputs.batch(), {"credit": 2})
    assert not inputs.room()
    inputs.taken += 1
    assert inputs.room()


def test_map_events_once_each_and_without_gaps() -> None:
    events = _mapstate.Events(ordered=True, return_exceptions=False)
    result = {"status": "COMPLETE", "result": _connect.b64(b"5"), "resultFormat": "json"}
    events.feed({"event": "0", "index": "1", "outcome": result})
    events.feed({"event": "0", "index": "1", "outcome": result})
    events.feed({"keepalive": True})
    assert not events.ready
    events.feed({"event": "1", "outcome": result})
    assert [events.take(), events.take()] == [5, 5] and events.items == 2
    with pytest.raises(beam.BeamError, match="left out events 2 to 2"):
        events.feed({"event": "3", "end": True})


def test_long_lines_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _console.Lines(prefix=True)
    lines.feed(3, 1, b"a\nb")
    lines.feed(3, 1, b"x" * (70 << 10))
    lines.feed(4, 2, "é".encode()[:1])
    lines.end(4)
    captured = capsys.readouterr()
    assert captured.out == "[3] a\n[3] b" + "x" * (70 << 10) + "\n"
    assert captured.err == "[4] \ufffd\n"


def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    assert beam.env.is_local() and not beam.env.called_on_import()
    monkeypatch.setenv("CONTAINER_ID", "c")
    assert beam.env.is_remote()
    monkeypatch.setenv("N", "3")
    assert beam.env.try_env("N", 1) == 3 and beam.env.try_env("N", "") == "3" and beam.env.try_env("N", 1.5) == 3.0
    assert beam.env.try_env("N", False) is False
    monkeypatch.setenv("N", "x")
    assert beam.env.try_env("N", 1) == 1


def test_gpu_names_are_open() -> None:
    assert _types.gpu_names("SomethingNew-96") == "SomethingNew-96"
    assert str(beam.GpuType.A100_40) == "A100-40" and beam.GpuType.T4 == "T4"


def test_phases_below_a_millisecond(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BEAM_PHASES", "1")
    phases = [{"name": "pull", "durationMs": "12", "detail": "1.0 MiB from 1 peer"}, {"name": "run"}]
    _console.phases({"nodeName": "box1", "phases": phases})
    assert capsys.readouterr().err == "=> Ran on box1 (new container): pull 12 ms (1.0 MiB from 1 peer), run <1 ms\n"
