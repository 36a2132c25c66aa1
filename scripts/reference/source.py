"""Reads landmark's modules as text: docstrings, constants, fields and schemas."""

import ast
import functools
import inspect
import itertools
from pathlib import Path

from scripts.reference.markdown import code, table

ROOT = Path(__file__).resolve().parents[2]


CODE = ROOT / "landmark"


@functools.cache
def sources() -> dict[str, str]:
    """Return the text of all modules by their path below landmark/."""
    return {str(file.relative_to(CODE)): file.read_text() for file in sorted(CODE.rglob("*.py"))}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return the syntax trees of all modules by their path below landmark/."""
    return {name: ast.parse(text) for name, text in sources().items()}


def definition(name: str, below: str | tuple[str, ...] = "") -> ast.FunctionDef | ast.ClassDef:
    """Return the one function, method or class of a name; raises SystemExit unless there is exactly one."""
    found = [
        node
        for file, tree in trees().items()
        if file.startswith(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    ]
    documented = [node for node in found if ast.get_docstring(node)]
    found = documented if len(found) > 1 and len(documented) == 1 else found
    if len(found) != 1:
        raise SystemExit(f"scripts/reference: error: {len(found)} definitions of {name} in {below}; change the script")
    return found[0]


def assigned(name: str, below: str = "") -> ast.expr:
    """Return the value of the one module constant of a name; raises SystemExit unless there is exactly one."""
    found = [
        node.value
        for file, tree in trees().items()
        if file.startswith(below)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == name for target in node.targets)
    ]
    if len(found) != 1:
        raise SystemExit(f"scripts/reference: error: {len(found)} constants {name} in landmark; change the script")
    return found[0]


def constant(name: str, file: str) -> str:
    """Return the value of a module constant as text."""
    return str(ast.literal_eval(assigned(name, file)))


def schema(name: str) -> list[tuple[str, str]]:
    """Return the columns of a `pa.schema([...])` constant with their types."""
    value = assigned(name)
    assert isinstance(value, ast.Call) and isinstance(value.args[0], ast.List)
    columns = []
    for element in value.args[0].elts:
        assert isinstance(element, ast.Tuple)
        kind = ast.unparse(element.elts[1]).removeprefix("pa.").removesuffix("()")
        columns.append((str(ast.literal_eval(element.elts[0])), kind))
    return columns


def fields_table(name: str) -> str:
    """Return a table of a dataclass's fields, read from its source."""
    rows = []
    body = definition(name).body
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            kind = ast.unparse(field.annotation).replace("|", "or")
            rows.append((code(ast.unparse(field.target)), code(kind), " ".join(str(text.value.value).split())))
    return table(("Key", "Type", "Meaning"), rows)


def same(subject: str, found: set[int], documented: set[int]) -> None:
    """Raise SystemExit unless the code has what is documented."""
    if found != documented:
        raise SystemExit(
            f"scripts/reference: error: {subject} in the code are {sorted(found)}, documented are {sorted(documented)}"
        )


def docstring_of(kind: type) -> str:
    """Return a class's docstring as Markdown."""
    return (inspect.getdoc(kind) or "").strip()


def first(kind: type) -> str:
    """Return the first paragraph of a class's docstring."""
    return " ".join(docstring_of(kind).split("\n\n")[0].split())


def comment_of(file: Path) -> str:
    """Return the comment at the top of a file, as one line."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)
