"""Run a decorated function from the command line: what ``beam run`` starts.

    python3 -m beam.run file.py:fn [--arg VALUE ...] [--detach] [--json]

Each --arg is JSON, or plain text where it is none; ``--arg name=VALUE`` gives a
keyword argument. The result is printed on stdout (with --json one JSON object:
``{"task_id", "status", "node", "result"}``), everything else on stderr. Exit codes:
0, 1 the function failed, 2 usage, 3 no such file or function, 4 token, 5 conflict,
6 no capacity, 7 gave up, 8 no node, 124 the task timed out, 130 interrupted,
137 out of memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import traceback
from typing import Any, Dict, List, Optional, Tuple

from beam import _console, _state
from beam._errors import BeamError, BuildError, InvalidError, NotFoundError, RemoteError, RemoteTraceback


def main(argv: Optional[List[str]] = None) -> int:
    options = _parse(sys.argv[1:] if argv is None else argv)
    try:
        args, kwargs = arguments(options.arg)
        function = find(options.target)
        if options.json:
            # stdout holds the one object and nothing else.
            _console.stdout_fd = 2
        return detach(function, args, kwargs, options) if options.detach else attach(function, args, kwargs, options)
    except KeyboardInterrupt:
        return 130
    except BeamError as exc:
        return complain(exc, options.json)
    except Exception as exc:
        if isinstance(exc.__cause__, RemoteTraceback):
            return complain(exc, options.json)
        raise


def _parse(argv: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="beam run", description="Run a decorated function on the mesh.")
    parser.add_argument("target", metavar="file.py:function")
    parser.add_argument("--arg", action="append", default=[], metavar="VALUE", help="JSON or text; name=VALUE by keyword")
    parser.add_argument("--detach", action="store_true", help="start it and print its task id")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def arguments(given: List[str]) -> Tuple[List[Any], Dict[str, Any]]:
    """The --arg values as positional and keyword arguments.

    >>> arguments(["12", "text", "name=[1, 2]", '"a=b"'])
    ([12, 'text', 'a=b'], {'name': [1, 2]})
    """
    args: List[Any] = []
    kwargs: Dict[str, Any] = {}
    for text in given:
        match = re.match(r"^([A-Za-z_]\w*)=(.*)$", text, re.S)
        value = match.group(2) if match else text
        try:
            value = json.loads(value)
        except ValueError:
            pass
        if match:
            kwargs[match.group(1)] = value
        else:
            args.append(value)
    return args, kwargs


def find(target: str) -> Any:
    """Load file.py:function, or package.module:function, and give the decorated object."""
    from beam._function import RemoteFunction

    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise InvalidError("%r is not file.py:function" % target, "for example: beam run app.py:square --arg 12")
    module = _load(where)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    functions = sorted(key for key, value in vars(module).items() if isinstance(value, RemoteFunction))
    if isinstance(found, RemoteFunction):
        return found
    there = "functions there: %s" % ", ".join(functions) if functions else "decorate one with @function()"
    if found is None:
        raise NotFoundError("%s has no %s" % (where, name), there)
    raise InvalidError("%s in %s is not decorated with @function()" % (name, where), there)


def _load(where: str) -> Any:
    if where.endswith(".py") or os.sep in where:
        path = os.path.realpath(where)
        if not os.path.isfile(path):
            raise NotFoundError("no file %s" % where, "the path is relative to %s" % os.getcwd())
        folder, module = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
        while os.path.isfile(os.path.join(folder, "__init__.py")):
            folder, package = os.path.split(folder)
            module = package + "." + module
        sys.path.insert(0, folder)
    else:
        module = where
        sys.path.insert(0, os.getcwd())
    # As in a container: calls at the file's top level are not made.
    _state.importing = True
    try:
        return importlib.import_module(module)
    except SyntaxError as exc:
        sys.stderr.write("".join(traceback.format_exception_only(type(exc), exc)))
        raise _user_error("%s, line %s: %s" % (os.path.basename(exc.filename or "?"), exc.lineno, exc.msg)) from None
    except ModuleNotFoundError as exc:
        if exc.name == module.split(".")[0] and not where.endswith(".py"):
            raise NotFoundError("no module %s" % module, "name a file: app.py:square") from None
        raise _user_error(_import_failed(exc), "install it here too: your file is imported to find the function") from None
    except (Exception, SystemExit) as exc:
        raise _user_error(_import_failed(exc)) from None
    finally:
        _state.importing = False


def _import_failed(exc: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if "importlib" not in f.filename and f.filename != __file__]
    sys.stderr.write("Traceback (most recent call last):\n" + "".join(traceback.format_list(frames)))
    sys.stderr.write("".join(traceback.format_exception_only(type(exc), exc)))
    return "%s while importing the file: %s" % (type(exc).__name__, exc)


def _user_error(message: str, hint: str = "mend the file and run it again") -> RemoteError:
    return RemoteError(message, hint)


def attach(function: Any, args: List[Any], kwargs: Dict[str, Any], options: argparse.Namespace) -> int:
    """Run it and print what it gives."""
    call = function.call(args, kwargs)
    value = call.value()
    if not options.json:
        if value is not None:
            print(value)
        return 0
    told = {"task_id": call.task_id, "status": "COMPLETE", "node": call.node, "result": plain(value)}
    print(json.dumps(told))
    return 0


def detach(function: Any, args: List[Any], kwargs: Dict[str, Any], options: argparse.Namespace) -> int:
    """Start it and print its id."""
    task = function.submit(*args, **kwargs)
    print(json.dumps({"task_id": task.id, "status": "PENDING"}) if options.json else task.id)
    if not options.json:
        _console.step("Detached: see 'beam logs -f --task-id %s', stop with 'beam task stop %s'" % (task.id, task.id))
    return 0


def plain(value: Any) -> Any:
    """value where JSON has it, else its repr."""
    try:
        json.dumps(value)
        return value
    except (TypeError, ValueError):
        return repr(value)


def frames(text: str, message: str) -> str:
    """A traceback without its end where that is the message, which is printed next.

    >>> frames("Traceback:\\n  File ...\\napp.Bad: no\\n", "Bad: no")
    'Traceback:\\n  File ...\\n'
    >>> frames("Traceback:\\n  File ...\\nTypeError: cannot\\n", "the result cannot be sent")
    'Traceback:\\n  File ...\\nTypeError: cannot\\n'
    """
    text = text.rstrip("\n")
    if text.endswith(message):
        above, newline, module = text[: -len(message)].rpartition("\n")
        if newline and re.match(r"^([^\W\d]\w*\.)*$", module):
            return above + "\n"
    return text + "\n"


def complain(exc: Exception, as_json: bool) -> int:
    """Print an error for people, and for programs with --json; gives the exit code."""
    message, hint, code, status = str(exc), "", "failed", 1
    if isinstance(exc, BeamError):
        message, hint, code, status = exc.message, exc.hint, exc.code, exc.exit_status
    else:
        message = "%s: %s" % (type(exc).__name__, exc) if str(exc) else type(exc).__name__
    cause = exc.__cause__
    if isinstance(cause, RemoteTraceback):
        sys.stderr.write(frames(cause.text, message))
    # The last lines of a build were printed as they came.
    shown = message.split("\n")[0] if isinstance(exc, BuildError) else message
    sys.stderr.write("error: %s\n" % shown)
    if hint:
        sys.stderr.write("hint: %s\n" % hint)
    if as_json:
        task_id = getattr(exc, "task_id", "") or getattr(cause, "task_id", "")
        told = {"code": code, "message": message, "hint": hint, "task_id": task_id}
        print(json.dumps({"error": told}))
    return status


if __name__ == "__main__":
    sys.exit(main())
