"""The commands that README.md prints in a section, for tests to run as they are printed."""

import pathlib
import re

README = pathlib.Path(__file__).parent.parent / "README.md"


def commands(section):
    """In their order, without what is said about them behind a #; whether each is one for every Cassandra node."""
    text = README.read_text()
    begin = text.index(f"\n## {section}\n")
    text = text[begin : text.index("\n## ", begin + 1)]
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", "").splitlines():
            assert line.startswith("$ "), f"{section}: {line} is no command"
            command, _, said = line[2:].partition("  # ")
            found.append((command.strip(), said.strip() == "on every node"))
    return found
