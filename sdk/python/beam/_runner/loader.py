"""Find and import the handler, and say why when that fails.

A handler is ``module:name`` below the working directory (``pkg.app:train``), or
``name.pkl:name`` for a function that was defined in a notebook and travels
pickled. A decorated object stands for the plain function inside it.
"""

import importlib
import os
import sys
from typing import Any, Callable, Dict, Optional

from beam import _state
from beam._runner import reports


class LoadError(Exception):
    """The handler cannot be served; ``error`` is what the caller is told."""

    def __init__(self, error: Dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


def prepare_path(code_dir: str, below: str = "") -> None:
    """Put the user's code first on sys.path, and before it the folder in it
    that the client's program imported from."""
    first = [code_dir]
    if below:
        first.insert(0, os.path.normpath(os.path.join(code_dir, below)))
    kept = [p for p in sys.path if p not in ("", *first)]
    sys.path[:] = first + kept


def check_python(client: str) -> None:
    """Refuse a client of another Python minor: pickles would not load."""
    here = "%d.%d" % sys.version_info[:2]
    if not client or _minor(client) == here:
        return
    raise LoadError(
        reports.clipped(
            "python_mismatch",
            "PythonMismatch",
            "your program runs on Python %s, the image has Python %s" % (_minor(client), here),
            hint='run it with Python %s, or ask for Image(python_version="python%s")' % (here, _minor(client)),
        )
    )


def _minor(version: str) -> str:
    digits = version.strip()
    if digits.startswith("python"):
        digits = digits[len("python") :]
    return ".".join(digits.split(".")[:2])


def load(handler: str, code_dir: str) -> Callable[..., Any]:
    """Import handler and give the plain function."""
    module_name, _, name = handler.partition(":")
    if not module_name or not name:
        raise LoadError(
            reports.clipped(
                "handler_missing",
                "HandlerMissing",
                "handler %r is not of the form module:function" % handler,
                hint="name it as file.py:function",
            )
        )
    if module_name.endswith(".pkl"):
        pickled: Callable[..., Any] = plain(_unpickle(os.path.join(code_dir, module_name), name))
        return pickled
    module = _import(module_name, code_dir)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(_missing(module, module_name, name)) from None
    function: Callable[..., Any] = plain(found)
    if not callable(function):
        raise LoadError(
            reports.clipped(
                "handler_missing",
                "HandlerMissing",
                "%s in module %s is no function but of type %s" % (name, module_name, type(found).__name__),
                hint="decorate a function with @function()",
            )
        )
    return function


def plain(found: Any) -> Any:
    """The function inside a decorated object, else the object itself."""
    return getattr(found, "__beam_function__", found)


def _import(name: str, code_dir: str) -> Any:
    _beside(name, code_dir)
    _state.importing = True
    os.environ["BEAM_IMPORTING_USER_CODE"] = "true"
    try:
        return importlib.import_module(name)
    except SyntaxError as exc:
        where = "%s, line %s" % (os.path.basename(exc.filename or "?"), exc.lineno)
        message = "%s (%s)" % (exc.msg, where)
        raise LoadError(reports.report("syntax_error", exc, "mend the file and run it again", message)) from None
    except ModuleNotFoundError as exc:
        raise LoadError(_no_module(exc, name)) from None
    except BaseException as exc:  # SystemExit at import is the user's error too
        hint = "the error is in what the file does while it is imported"
        raise LoadError(reports.report("import_error", exc, hint, _described(exc))) from None
    finally:
        _state.importing = False
        os.environ.pop("BEAM_IMPORTING_USER_CODE", None)


def _beside(name: str, code_dir: str) -> None:
    """Let a script in a plain folder import its neighbours, as when run directly."""
    parts = name.split(".")[:-1]
    folder = os.path.join(code_dir, *parts)
    if parts and os.path.isdir(folder) and not os.path.exists(os.path.join(folder, "__init__.py")):
        if folder not in sys.path:
            sys.path.insert(1, folder)


def _described(exc: BaseException) -> str:
    text = reports.message_of(exc)
    return "%s: %s" % (type(exc).__name__, text) if text else type(exc).__name__


def _no_module(exc: ModuleNotFoundError, handler_module: str) -> Dict[str, Any]:
    missing = exc.name or ""
    top = missing.split(".")[0]
    if missing and (missing == handler_module or handler_module.startswith(missing + ".")):
        hint = "the file is not among the synced code: is it excluded by .beamignore?"
        return reports.report("handler_missing", exc, hint, "no module %s in the synced code" % missing)
    hint = 'the image lacks it: Image(python_packages=["%s"]), if that is its name on PyPI' % top
    return reports.report("import_error", exc, hint, _described(exc))


def _missing(module: Any, module_name: str, name: str) -> Dict[str, Any]:
    import difflib

    names = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
    near = difflib.get_close_matches(name, names, 1, 0.4)
    hint = "did you mean %s?" % near[0] if near else "handlers must be names at the top level of the file"
    message = "module %s has no function %s" % (module_name, name)
    return reports.clipped("handler_missing", "HandlerMissing", message, hint=hint)


def _unpickle(path: str, name: str) -> Any:
    import pickle

    try:
        with open(path, "rb") as f:
            return pickle.load(f)
    except FileNotFoundError as exc:
        raise LoadError(reports.report("handler_missing", exc, "define the function in a file", "no pickled handler for %s" % name)) from None
    except BaseException as exc:
        hint = "the function refers to something that the image lacks: define it in a file"
        raise LoadError(reports.report("import_error", exc, hint, _described(exc))) from None


def run_on_start(on_start: str, code_dir: str, run: Callable[[Callable[..., Any]], Any]) -> Optional[Any]:
    """Load and run the on_start function; its value goes to Context.on_start_value."""
    if not on_start:
        return None
    function = load(on_start, code_dir)
    try:
        return run(function)
    except BaseException as exc:
        hint = "on_start runs once before the first call"
        raise LoadError(reports.report("on_start_error", exc, hint, _described(exc))) from None
