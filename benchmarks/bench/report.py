"""Tables on the terminal, in summary.json, and in docs/performance.md.

python -m bench.report          # writes the docs section anew from out/bench/summary.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import ROOT

OUT = ROOT / "out" / "bench"
PAGE = ROOT / "docs" / "performance.md"
Cell = str | float | int | None


@dataclass(slots=True)
class Table:
    """One table.

    Attributes:
        name: of the module that made it.
        rows: as many cells as there are columns; None: not measured.
        notes: what a reader must know to read it.
        keys: what summary.json has at its top.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list[Sequence[Cell]])
    notes: list[str] = field(default_factory=list[str])
    keys: dict[str, Cell] = field(default_factory=dict[str, Cell])

    def text(self) -> str:
        """For the terminal."""
        cells = [list(self.columns), *([shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        rule = "-" * max(len(line) for line in lines)
        keys = [f"{key} = {shown(value)}" for key, value in self.keys.items()]
        return "\n".join(
            ["", self.title, rule, lines[0], rule, *lines[1:], rule, *self.notes, *keys]
        )

    def markdown(self) -> str:
        """For the docs."""
        lines = [f"### {self.title}", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.columns) - 1))
        lines += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in self.rows]
        if self.keys:
            keys = ", ".join(f"`{key}` {shown(value)}" for key, value in self.keys.items())
            lines += ["", keys + "."]
        lines += [line for note in self.notes for line in ("", note)]
        return "\n".join(lines)


def shown(cell: Cell) -> str:
    """A cell as it is read: three figures."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        if abs(cell) >= 1000:
            return f"{cell:,.0f}"
        return f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def save(tables: Sequence[Table], machine: dict[str, Any], out: Path) -> Path:
    """Add tables to out/summary.json: others that are there already stay.

    The keys of all tables stand at the top; each table says what it ran on.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    kept: dict[str, Any] = found.get("tables", {})
    for table in tables:
        kept[table.name] = {**asdict(table), "machine": machine}
    keys = {key: value for table in kept.values() for key, value in table["keys"].items()}
    path.write_text(json.dumps({**keys, "tables": kept}, indent=1) + "\n")
    return path


def section(summary: dict[str, Any]) -> str:
    """The docs section of a summary."""
    parts: list[str] = []
    last = ""
    for found in summary["tables"].values():
        ran_on = machine_line(found["machine"])
        fields = {key: value for key, value in found.items() if key != "machine"}
        if ran_on != last:
            parts.append(ran_on)
            last = ran_on
        parts.append(Table(**fields).markdown())
    return "\n\n".join(parts)


def machine_line(machine: dict[str, Any]) -> str:
    """What tables ran on, in two sentences."""
    packages = ", ".join(f"{name} {at}" for name, at in machine["packages"].items() if at)
    return (
        f"Run {machine['date']}, commit {machine['commit']}, {machine['cores']} cores of "
        f"{machine['cpu']}, {machine['memory_gib']:g} GiB, {machine['compute_threads']} compute "
        f"thread, load {machine['load_at_start']} at the start. Python {machine['python']}, "
        f"{packages}."
    )


def replace_between(page: Path, name: str, made: str) -> None:
    """Put a section between a page's two marks of that name.

    Raises:
        ValueError: the page does not have them.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, first, rest = page.read_text().partition(begin)
    _, mark, after = rest.partition(end)
    if not first or not mark:
        raise ValueError(f"{page} has no {begin} … {end}")
    page.write_text(f"{before}{begin}\n\n{made}\n\n{end}{after}")


if __name__ == "__main__":
    replace_between(PAGE, "bench", section(json.loads((OUT / "summary.json").read_text())))
    print(f"wrote {PAGE.relative_to(ROOT)}")
