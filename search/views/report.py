"""A report: tables with the words around them, for the terminal and as Markdown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Report:
    """A table with the words around it."""

    title: str
    introduction: tuple[str, ...]
    """Lines before the table."""
    table: Table
    footnotes: Mapping[str, tuple[str, ...]]
    """Lists after the tables, by heading. Empty ones are not shown."""
    further: Mapping[str, Table] = field(default_factory=dict)
    """Tables after the first, by heading. Empty ones are not shown."""

    def show(self, console: Console) -> None:
        """Print the report."""
        console.print(Text(self.title, style="bold"))
        for line in self.introduction:
            console.print(Text(line))
        console.print()
        console.print(self.table)
        for heading, table in self._further():
            console.print()
            console.print(Text(f"{heading}:"))
            console.print(table)
        for heading, notes in self._lists():
            console.print()
            console.print(Text(f"{heading}:"))
            for note in notes:
                console.print(Text(f"- {note}"))

    def markdown(self) -> str:
        """Return the report as Markdown."""
        blocks = [f"## {self.title}", "\n".join(f"{line}  " for line in self.introduction).rstrip()]
        blocks.append(_markdown_table(self.table))
        for heading, table in self._further():
            blocks += [f"{heading}:", _markdown_table(table)]
        for heading, notes in self._lists():
            blocks += [f"{heading}:", "\n".join(f"- {note}" for note in notes)]
        return "\n\n".join(blocks) + "\n"

    def _further(self) -> Iterator[tuple[str, Table]]:
        yield from ((heading, table) for heading, table in self.further.items() if table.row_count)

    def _lists(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from ((heading, notes) for heading, notes in self.footnotes.items() if notes)


def _markdown_table(table: Table) -> str:
    rows = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    rows += [list(cells) for cells in zip(*(map(str, column.cells) for column in table.columns), strict=True)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines + ([f"\n{table.caption}"] if table.caption else []))
