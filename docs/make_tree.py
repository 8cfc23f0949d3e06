"""Write the tree of `docs/architecture.md` from the first line of every module. python docs/make_tree.py [--check]"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "potstill"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree:begin -->", "<!-- tree:end -->"


def clause(file: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def tree() -> str:
    """Every module with its clause, folders first by name, as a block of text."""
    lines = []
    for folder in sorted(path for path in SOURCE.iterdir() if (path / "__init__.py").is_file()):
        lines.append(f"{folder.name}/{'':<{27 - len(folder.name)}}{clause(folder / '__init__.py')}")
        files = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
        lines += [f"    {file.name:<24}{clause(file)}" for file in files]
    lines += [f"{file.name:<28}{clause(file)}" for file in sorted(SOURCE.glob("*.py"))]
    return "\n".join(lines)


def page() -> str:
    """The page with today's tree."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n```\n{tree()}\n```\n{END}{after}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
