#!/usr/bin/python3
"""Renders .github/demo.svg, the picture in the README, from a real session.

    cargo build && .github/demo.py

It runs the programs from target/debug in pseudo-terminals, types into the client, and draws what the
terminals show. Port 54000 must be free. Needs Debian's packages python3-pyte and python3-rich.
"""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console, Group
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 112
CLIENT_WIDTH = 58
PATIENCE = 20  # seconds
THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [(110, 118, 129), (255, 123, 114), (86, 211, 100), (227, 179, 65),
     (121, 192, 255), (210, 168, 255), (86, 212, 221), (177, 186, 196)],
)
# As Rich's own, but without fonts from another server: GitHub shows no such resources.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>echo-server logs a client; echo-client sends two lines and receives their echoes; echo-client test passes all checks</title>
<!-- Rendered from a real session by .github/demo.py, with Rich. -->
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
.{unique_id}-title {{
  font-family: system-ui, sans-serif;
  font-size: 18px;
  font-weight: bold;
}}
{styles}
</style>
<defs>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Program:
    """A program in a pseudo-terminal of its own."""

    def __init__(self, columns, *command):
        self.command = command
        self.screen = pyte.Screen(columns, 60)
        self.stream = pyte.ByteStream(self.screen)
        self.terminal, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("NO_COLOR", "RUST_LOG") and not name.startswith("ECHO_SERVER_")}
        environment.update(TERM="xterm-256color", PATH=f"{ROOT}/target/debug:{os.environ['PATH']}")
        self.process = subprocess.Popen(
            command, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True,
            # Ctrl+C and the like reach the program only if this is its controlling terminal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(inside)

    def wait_for(self, text, count=1):
        """Reads until the terminal shows `text` this often."""
        deadline = time.monotonic() + PATIENCE
        while sum(line.count(text) for line in self.screen.display) < count:
            if not self.read(deadline):
                shown = "\n".join(self.screen.display).rstrip()
                raise SystemExit(f"{self.command} does not show {text!r}:\n{shown}")

    def wait_for_exit(self):
        while self.read(time.monotonic() + PATIENCE):
            pass
        self.process.wait(PATIENCE)

    def read(self, deadline):
        """Returns whether something arrived before the deadline."""
        ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
        try:
            data = os.read(self.terminal, 65536) if ready else b""
        except OSError:  # Linux's way to say that all programs have closed the terminal.
            data = b""
        self.stream.feed(data)
        # A terminal answers when it is asked for the position of the cursor.
        if b"\x1b[6n" in data:
            self.type(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        return bool(data)

    def type(self, keys):
        os.write(self.terminal, keys.encode())

    def rows(self):
        """Returns what the terminal shows, without the empty rows at the end."""
        rows = []
        for y in range(self.screen.lines):
            row = Text()
            cells = [self.screen.buffer[y][x] for x in range(self.screen.columns)]
            # Word by word, since some viewers drop a space at the start of a piece of text.
            for (style, _), chars in groupby(cells, lambda char: (style_of(char), char.data == " ")):
                row.append("".join(char.data for char in chars), style)
            row.rstrip()
            rows.append(row)
        while rows and not rows[-1].plain:
            rows.pop()
        return rows


def style_of(char):
    colour = char.fg
    if re.fullmatch("[0-9a-f]{6}", colour):
        colour = f"#{colour}"
    elif colour == "brown":  # so looked yellow on the first terminals
        colour = "yellow"
    else:
        colour = colour.replace("bright", "bright_")
    return Style(color=colour, bold=char.bold)


def panel(program, rows, width):
    command = Text.assemble(("$ ", "green"), (" ".join(program.command), "bold"))
    return Panel(Group(command, *rows), width=width, border_style="bright_black")


def main():
    server = Program(WIDTH - 4, "echo-server", "--host", "127.0.0.1")
    try:
        server.wait_for("Server listening on 127.0.0.1:54000")
        client = Program(CLIENT_WIDTH - 4, "echo-client")
        client.wait_for("> ")
        for line in ("hello", "Ελληνικά"):
            client.type(line + "\r")
            client.wait_for(f"Server: {line[0]}")
        client.type("quit\r")
        client.wait_for_exit()
        server.wait_for(" disconnected: ")
        log = server.rows()
        test = Program(WIDTH - CLIENT_WIDTH - 4, "echo-client", "test")
        test.wait_for_exit()
        if test.process.returncode != 0:
            raise SystemExit("\n".join(test.screen.display))
    finally:
        server.process.terminate()

    beside = Table.grid()
    session = client.rows()
    beside.add_row(
        panel(client, session, CLIENT_WIDTH),
        # As high as its neighbour: the command and the dots take one row each.
        panel(test, [Text("…"), *test.rows()[1 - len(session):]], WIDTH - CLIENT_WIDTH),
    )
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True,
                      color_system="truecolor", legacy_windows=False)
    console.print(panel(server, log, WIDTH))
    console.print(beside)
    svg = console.export_svg(theme=THEME, code_format=SVG, title="echo-server", unique_id="demo")
    (ROOT / ".github" / "demo.svg").write_text(svg)


if __name__ == "__main__":
    main()
