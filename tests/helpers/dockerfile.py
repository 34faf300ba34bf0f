"""Reads a Dockerfile: its instructions, and the commands of its documentation."""

import json
import re
import shlex


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
