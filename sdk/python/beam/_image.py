"""Image: what a container starts from, as a chain of steps."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from beam import _types
from beam._errors import BuildError, InvalidError

if TYPE_CHECKING:
    from beam import _client

_mu = threading.Lock()
_built: Dict[Tuple[Any, str], "ImageBuildResult"] = {}
# How many of a failed build's last lines go into the error.
_LAST_LINES = 20


class ImageBuildResult(NamedTuple):
    """What Image.build gives."""

    success: bool
    image_id: str = ""
    python_version: str = ""


class Image:
    """A container image: a base, a Python version, packages, commands.

    The default is Debian bookworm with Python 3.11. Steps run in this order:
    python_packages, commands, then what the add_ methods chained.

    Args:
        python_version: "python3" (the base's own) or such as "python3.12".
        python_packages: names for pip, or the path of a requirements file.
        commands: shell commands to run while building.
        base_image: an image of a registry, such as "docker.io/library/python:3.12".
        base_image_creds: names of environment variables with the registry's
            credentials, or a dict of them with their values.
        env_vars: "K=V", a list of such, or a dict; set while building and running.
        image_id: an image that exists already.

    >>> image = Image(python_packages=["numpy"]).add_commands(["echo hi"])
    >>> image.spec()["buildSteps"]
    [{'type': 'shell', 'command': 'echo hi'}]
    """

    def __init__(
        self,
        python_version: str = "python3",
        python_packages: Union[None, str, Sequence[str]] = None,
        commands: Optional[Sequence[str]] = None,
        base_image: Optional[str] = None,
        base_image_creds: Union[None, Sequence[str], Dict[str, str]] = None,
        env_vars: Union[None, str, List[str], Dict[str, str]] = None,
        image_id: Optional[str] = None,
    ) -> None:
        self.python_version = _python(python_version)
        self.python_packages = _packages(python_packages)
        self.commands = _commands(commands or [])
        self.base_image = base_image or ""
        self.base_image_creds = base_image_creds
        self.env_vars = _types.env_entries(env_vars, "env_vars")
        self.image_id = image_id or ""
        self.gpu = ""
        self._steps: List[Dict[str, str]] = []

    def add_commands(self, commands: Sequence[str]) -> "Image":
        """Run shell commands after the steps so far."""
        self._steps += [{"type": "shell", "command": command} for command in _commands(commands)]
        return self

    def add_python_packages(self, packages: Union[str, Sequence[str]]) -> "Image":
        """Install packages after the steps so far."""
        self._steps += [{"type": "pip", "command": package} for package in _packages(packages)]
        return self

    def add_python_version(self, version: str) -> "Image":
        """Use another Python."""
        self.python_version = _python(version)
        return self

    def with_envs(self, env: Union[str, List[str], Dict[str, str]], clear: bool = False) -> "Image":
        """Add variables; clear=True forgets the earlier ones."""
        self.env_vars = ([] if clear else self.env_vars) + _types.env_entries(env, "env_vars")
        return self

    def build_with_gpu(self, gpu: str) -> "Image":
        """Build on a machine that has this GPU."""
        self.gpu = _types.gpu_names(gpu)
        return self

    @classmethod
    def from_id(cls, image_id: str) -> "Image":
        """An image that exists already."""
        return cls(image_id=image_id)

    @classmethod
    def from_registry(cls, uri: str, credentials: Union[None, Sequence[str], Dict[str, str]] = None) -> "Image":
        """An image of a registry."""
        return cls(base_image=uri, base_image_creds=credentials)

    def spec(self) -> Dict[str, Any]:
        """The image as the node is asked for it."""
        spec: Dict[str, Any] = {
            "pythonVersion": self.python_version,
            "pythonPackages": self.python_packages,
            "commands": self.commands,
            "buildSteps": self._steps,
            "envVars": self.env_vars,
            "existingImageUri": self.base_image,
            "gpu": self.gpu,
        }
        return {key: value for key, value in spec.items() if value}

    def exists(self) -> bool:
        """Whether the mesh has this image."""
        from beam import _client

        return bool(self._verify(_client.shared()).get("exists"))

    def build(self) -> ImageBuildResult:
        """Build the image unless the mesh has it.

        Raises:
            BuildError: a step failed; the message ends with its last lines,
                which were also printed as they came.
        """
        from beam import _client, _console

        client = _client.shared()
        key = (client.config, repr((self.spec(), self.image_id)))
        with _mu:
            if key in _built:
                return _built[key]
            _console.step("Building image")
            result = self._build(client)
            _built[key] = result
            return result

    def _verify(self, client: _client.Client) -> Dict[str, Any]:
        asked = self.spec()
        if self.image_id:
            asked["imageId"] = self.image_id
        return client.unary("image.ImageService/VerifyImageBuild", asked)

    def _build(self, client: _client.Client) -> ImageBuildResult:
        from beam import _console

        verified = self._verify(client)
        image_id = str(verified.get("imageId", "") or self.image_id)
        if verified.get("exists"):
            _console.step("Using cached image")
            return ImageBuildResult(True, image_id, self.python_version)
        if self.image_id:
            raise InvalidError("no image %s" % self.image_id, "'beam image ls' shows what there is; or describe it with Image(...)")
        if not verified.get("valid"):
            raise InvalidError("the node cannot build this image: %s" % self.spec(), "check base_image and python_version")
        asked = self.spec()
        creds = _credentials(self.base_image_creds)
        if creds:
            asked["existingImageCreds"] = creds
        last: List[str] = []
        with client.stream("image.ImageService/BuildImage", asked) as messages:
            for message in messages:
                text = str(message.get("msg", ""))
                last = (last + text.splitlines())[-_LAST_LINES:]
                if message.get("done") and not message.get("success"):
                    # The same follows as the stream's own error, with its hint
                    # apart: reading on raises that.
                    continue
                if text:
                    _console.output(2, text if text.endswith("\n") else text + "\n")
                if message.get("done"):
                    _console.step("Image built")
                    version = str(message.get("pythonVersion") or self.python_version)
                    return ImageBuildResult(True, str(message.get("imageId") or image_id), version)
        lines = "\n".join("    " + line for line in last)
        raise BuildError("the image could not be built%s" % (":\n" + lines if lines else ""), "mend the step that failed")

    def __repr__(self) -> str:
        return "Image(%r)" % self.spec()


def _python(version: str) -> str:
    text = str(version).strip().lower()
    if text[:1].isdigit():
        text = "python" + text
    rest = text[len("python") :].split(".") if text.startswith("python") else []
    if not rest or len(rest) > 3 or not all(part.isdigit() for part in rest) or rest[0] != "3":
        raise InvalidError("python_version=%r is no Python version" % version, 'write "python3.11"')
    return "python" + ".".join(rest[:2])


def _packages(given: Union[None, str, Sequence[str]]) -> List[str]:
    if not given:
        return []
    if isinstance(given, str):
        return _requirements(given, ())
    packages = [str(package).strip() for package in given]
    if not all(packages):
        raise InvalidError("python_packages has an empty entry")
    return packages


def _requirements(path: str, above: Tuple[str, ...]) -> List[str]:
    real = os.path.realpath(path)
    if real in above:
        raise InvalidError("%s includes itself" % path)
    try:
        with open(real, encoding="utf-8") as f:
            text = f.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidError(
            "cannot read requirements file %s: %s" % (path, getattr(exc, "strerror", None) or exc),
            'python_packages is a path, or a list: ["numpy"]',
        ) from exc
    out: List[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        # A comment starts at the line's start or behind a space.
        line = (" " + line).split(" #")[0].strip()
        if not line:
            continue
        option, _, value = line.replace("=", " ", 1).partition(" ") if line.startswith("--") else line.partition(" ")
        if option in ("-r", "--requirement"):
            out += _requirements(os.path.join(os.path.dirname(real), value.strip()), above + (real,))
        elif option in ("-e", "--editable", "-c", "--constraint"):
            raise InvalidError("%s: %r cannot be used in an image" % (path, line), "write the constraint or package out")
        else:
            out.append(line)
    return out


def _commands(given: Sequence[str]) -> List[str]:
    if isinstance(given, str):
        raise InvalidError("commands is a list of strings, not one string", "write commands=[%r]" % given)
    commands = list(given)
    if not all(isinstance(command, str) and command.strip() for command in commands):
        raise InvalidError("commands has an empty entry or one that is no string")
    return commands


def _credentials(given: Union[None, Sequence[str], Dict[str, str]]) -> Dict[str, str]:
    if not given:
        return {}
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    missing = [name for name in given if name not in os.environ]
    if missing:
        raise InvalidError("base_image_creds: %s not set" % ", ".join(missing), "export the variables, or pass a dict")
    return {name: os.environ[name] for name in given}
