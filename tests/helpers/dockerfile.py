"""Reads a Dockerfile: its instructions, the files that are sent to its build, and the commands of its documentation."""

import json
import re
import shlex
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path


def instructions(text):
    """Return pairs of an instruction's name and its arguments as one line, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined if line.strip()]


def arguments_of(found, name):
    """Return the arguments of all instructions of a name."""
    return [arguments for instruction, arguments in found if instruction == name]


def command_of(found):
    """Return the words of CMD in its JSON form."""
    (command,) = arguments_of(found, "CMD")
    return json.loads(command)


def run_commands(text, image):
    """Return pairs of the options and the command within the container, of each ``docker run`` in Markdown."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n", "", "\n".join(blocks)).splitlines()
    words = [shlex.split(line)[2:] for line in lines if line.startswith("docker run")]
    return [(line[: line.index(image)], line[line.index(image) + 1 :]) for line in words]


def sent_files(root, ignored):
    """Return the files of a folder that Docker sends to a build: of .dockerignore, the last line that matches counts.

    A line matches a file by its own path or that of a folder above it. Its wildcards stay within one folder, except
    for ``**/`` at its beginning.
    """
    lines = [line for line in ignored if line and not line.startswith("#")]
    files = (path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file())
    return {file for file in files if not _ignored(file, lines)}


def _ignored(file, lines):
    folders = list(accumulate(file.split("/"), "{}/{}".format))
    found = [line for line in lines if any(_matches(path, line.removeprefix("!")) for path in folders)]
    return bool(found) and not found[-1].startswith("!")


def _matches(path, pattern):
    parts, wanted = path.split("/"), pattern.removeprefix("**/").split("/")
    parts = parts[-len(wanted) :] if pattern.startswith("**/") else parts
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
