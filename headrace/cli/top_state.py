"""What the person at `headrace top` has chosen, what each key does, and the screen that follows. No terminal here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.cli.top_rows import SORTS, FlowView, Row, arranged, exemplars_of, rows_of, trace_command
from headrace.cli.top_text import head_line, nothing_line, step_lines, steps_table

WINDOWS_S = (1, 10, 60)
AWAY_S = 3.0
MOST_TRACES = 20
KEYS = "q quit  ↑↓ select  ⏎ open  s sort  r reverse  / filter  w window  t trace  p pause  ? help"
HELP = (
    "q        quit (Ctrl-C too)",
    "↑ ↓ j k  select a step, or scroll an opened one; Page Up, Page Down, Home, End",
    "⏎ →      open the step: phases, counts, executions, instances",
    "Esc ←    back",
    "s S      sort by the next, the previous column",
    "r        reverse the order",
    "/        filter by flow, step, revision or state; ⏎ keeps it, Esc drops it",
    "w        window of 1, 10 or 60 seconds",
    "t        the command that shows the slowest execution; it is printed at the end, too",
    "p space  hold the screen still",
)
# Of a line.
PLAIN, HEAD, HEADING, SELECTED, BAD, FAINT = "plain", "head", "heading", "selected", "bad", "faint"

Line = tuple[str, str]


@dataclass
class TopState:
    """`traces`: commands asked for with `t`, to be printed when the screen is gone."""

    seconds: int = 10
    sort: str = "flow"
    reverse: bool = False
    wanted: str = ""
    typing: bool = False
    selected: tuple[str, str, str] | None = None
    opened: bool = False
    paused: bool = False
    helping: bool = False
    message: str = ""
    offset: int = 0
    scrolled: int = 0
    left_out: int = 0
    """Flows that run and are not shown."""
    traces: list[str] = field(default_factory=list)
    page: int = 10

    def rows(self, views: Sequence[FlowView]) -> list[Row]:
        """All rows as they are to be shown."""
        found = [row for view in views for row in rows_of(view, self.seconds)]
        return arranged(found, self.sort, self.wanted, reverse=self.reverse)

    def press(self, key: str, views: Sequence[FlowView]) -> bool:
        """False when the person wants to leave. Unknown keys do nothing."""
        self.message = ""
        if self.typing:
            self._type(key)
            return True
        if self.helping:
            self.helping = False
            return key != "q"
        match key:
            case "q":
                return False
            case "?" | "h":
                self.helping = True
            case "enter" | "right" | "l":
                self.opened, self.scrolled = bool(self.rows(views)), 0
            case "esc" | "left" | "backspace" | "b":
                self._back()
            case "s" | "S":
                names = list(SORTS)
                step = 1 if key == "s" else -1
                self.sort = names[(names.index(self.sort) + step) % len(names)]
                self.message = f"sorted by {self.sort}: {SORTS[self.sort]}"
            case "r":
                self.reverse = not self.reverse
            case "w":
                self.seconds = WINDOWS_S[(WINDOWS_S.index(self.seconds) + 1) % len(WINDOWS_S)]
            case "/":
                self.typing, self.opened = True, False
            case "p" | "space":
                self.paused = not self.paused
            case "t":
                self._trace(views)
            case _:
                self._move(key, views)
        return True

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "esc":
            self.typing, self.wanted = False, ""
        elif key == "backspace":
            self.wanted = self.wanted[:-1]
        elif key == "space":
            self.wanted += " "
        elif len(key) == 1:
            self.wanted += key

    def _back(self) -> None:
        if self.opened:
            self.opened = False
        else:
            self.wanted = ""

    def _move(self, key: str, views: Sequence[FlowView]) -> None:
        by = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -self.page, "page-down": self.page}
        by |= {"home": -(10**6), "end": 10**6}
        rows = self.rows(views)
        if key in by and self.opened:
            self.scrolled = max(0, self.scrolled + by[key])
        elif key in by and rows:
            index = min(max(self._index(rows) + by[key], 0), len(rows) - 1)
            self.selected = _name(rows[index])

    def _index(self, rows: Sequence[Row]) -> int:
        """Of the selected row; the first one while nothing is selected, or it is gone."""
        names = [_name(row) for row in rows]
        return names.index(self.selected) if self.selected in names else 0

    def _trace(self, views: Sequence[FlowView]) -> None:
        rows = self.rows(views)
        if not rows:
            return
        row = rows[self._index(rows)]
        view = next(view for view in views if view.flow == row.flow)
        command = trace_command(exemplars_of(view, self.seconds, row.step, row.digest))
        if not command:
            self.message = f"no hop of {row.step} ended in the last {self.seconds} s"
            return
        self.message = command
        if command not in self.traces:
            self.traces = [*self.traces, command][-MOST_TRACES:]

    # The screen

    def screen(self, views: Sequence[FlowView], width: int, height: int, now: float) -> list[Line]:
        """At most `height` lines; the terminal cuts what is wider than `width`."""
        if height < 1:
            return []
        foot = [(self._foot(), FAINT)] if height > 2 else []
        room = height - len(foot)
        if self.helping:
            body: list[Line] = [(line, PLAIN) for line in HELP][:room]
        else:
            rows = self.rows(views)
            body = self._head(views, now)
            if self.opened and rows:
                body += self._step(views, rows, width, room - len(body))
            else:
                body = body[: max(0, room - 2)] if room >= 3 else []
                table = self._table(rows, width, room - len(body), several=len(views) > 1)
                body += table if rows else [(nothing_line(views, self.wanted), FAINT)]
        return [*body[:room], *[("", PLAIN)] * (room - len(body)), *foot]

    def _head(self, views: Sequence[FlowView], now: float) -> list[Line]:
        if len(views) == 1:
            text = head_line(views[0], self.seconds)
        else:
            text = f"{len(views)} flows  last {self.seconds} s"
            text += f"  and {self.left_out} more: name one" if self.left_out else ""
        heard = [view.heard_at for view in views if view.heard_at]
        away_s = now - max(heard) if heard else 0.0
        if self.paused:
            text += "  held still"
        lines: list[Line] = [(text, HEAD)]
        if away_s > AWAY_S:
            lines.append((f"the mesh has not answered for {away_s:.0f} s; what is shown is old", BAD))
        for view in views:
            lines += [(view.problem, BAD)] * bool(view.problem)
            if len(views) == 1 and view.status is not None:
                lines += [(f"problem: {problem}", BAD) for problem in view.status.problems[:2]]
        return lines

    def _step(self, views: Sequence[FlowView], rows: Sequence[Row], width: int, room: int) -> list[Line]:
        row = rows[self._index(rows)]
        view = next(view for view in views if view.flow == row.flow)
        name, *rest = step_lines(view, row, self.seconds, width)
        self.page = shown = max(1, room - 1)
        self.scrolled = min(self.scrolled, max(0, len(rest) - shown))
        part = rest[self.scrolled : self.scrolled + shown]
        return [(name, HEADING), *((line, PLAIN) for line in part)][: max(0, room)]

    def _table(self, rows: Sequence[Row], width: int, room: int, *, several: bool) -> list[Line]:
        if not rows:
            return []
        heading, *lines = steps_table(rows, width, several=several)
        self.page = shown = max(1, room - 1)
        index = self._index(rows)
        self.offset = min(max(self.offset, index - shown + 1), index, max(0, len(rows) - shown))
        found: list[Line] = [(heading, HEADING)] if room > 1 else []
        for number in range(self.offset, min(self.offset + shown, len(rows))):
            found.append((lines[number].ljust(width), SELECTED) if number == index else (lines[number], PLAIN))
        return found

    def _foot(self) -> str:
        if self.typing:
            return f"filter: {self.wanted}_"
        if self.message:
            return self.message
        chosen = [f"by {self.sort}"] * (self.sort != "flow") + [f"filter: {self.wanted}"] * bool(self.wanted)
        return "  ".join([*chosen, KEYS])


def _name(row: Row) -> tuple[str, str, str]:
    return row.flow, row.step, row.digest
