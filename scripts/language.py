"""Counts words and patterns that are not plain technical English, in all text of the project.

Run: python scripts/language.py [--list PATTERN] [--write]. Counts are separate for text that users read (help,
messages, README, docs) and internal text (docstrings, comments). scripts/language_counts.json contains the allowed
counts. They may only decrease, and --write lowers them. The exit code is 1 if a pattern occurs more often than allowed.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

COUNTS = Path(__file__).with_name("language_counts.json")
PATTERNS = {
    "goes on (resumes, continues)": r"\b(?:go|goes|going|went|gone) on\b",
    "told, tells (prints, reports)": r"\b(?:tell|tells|told|telling)\b",
    "a for per": r"\b(?:images|classes|rows|steps|samples|photographs|tokens?|seconds?|minutes|epochs) an? "
    r"(?:class|second|step|worker|node|row|image|process|epoch|trial|run|GPU|job|label)\b",
    "beside(s) (compared with, next to)": r"\bbesides?\b",
    "alone (only)": r"\balone\b",
    "in place of (instead of)": r"\bin place of\b",
    "anew (again)": r"\banew\b",
    "mend (fix)": r"\bmend(?:s|ed)?\b",
    "by lot (at random)": r"\bby lot\b",
    "straddle (be split across)": r"\bstraddl",
    "empty: (the default)": r"\bempty: ",
    "lies in (is stored in)": r"\b(?:lies|lie|lay) (?:in|at|below|under|beside|where|together)\b|\bwhere it lies\b",
    "comes to (results in)": r"\b(?:come|comes|came) to\b",
    "least, greatest (minimum, maximum)": r"\b(?:least|greatest)\b",
    "pictures of nothing (distractors)": r"pictures? of nothing|photos-of-nothing|\bstrangers?\b",
    "guesses (predictions)": r"\bguess(?:es|ed)?\b",
    "what it is at (status)": r"\bis at\b(?= *[.,;:`]|$)",
    "near copies (near-duplicates)": r"\bnear copies\b|\bnear copy\b",
    "stood still (stalled)": r"\bst(?:and|ands|ood) still\b",
    "wants a token (requires)": r"\bwants? a\b",
    "space before %": r"\d %",
}
"""Name of the pattern, with the replacement in brackets -> regular expression, case-insensitive."""
SUFFIXES = (".md", ".yaml", ".sh")
FOLDERS = ("landmark", "docs", "scripts", "cluster", "k8s", "tune_spaces", "benchmarks")
SKIPPED = ("docs/reference", "scripts/language.py", "CHANGELOG.md")


def texts() -> Iterator[tuple[str, int, str, bool]]:
    """Yield each text: file, line, text, and whether users read it (help, messages and documents, not docstrings)."""
    files = [ROOT / "README.md", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))]
    for path in files:
        name = str(path.relative_to(ROOT))
        if name.startswith(SKIPPED) or not path.is_file():
            continue
        if path.suffix == ".py":
            yield from python_texts(path, name)
        elif path.suffix in SUFFIXES:
            for number, line in enumerate(path.read_text().splitlines(), 1):
                yield name, number, line, path.suffix == ".md"


def python_texts(path: Path, name: str) -> Iterator[tuple[str, int, str, bool]]:
    """Yield the strings and comments of a module."""
    source = path.read_text()
    tree = ast.parse(source)
    prose = {
        node.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    shown = name.startswith("landmark/config/") or "/cli/" in name
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            is_prose = node.lineno in prose
            yield (
                name,
                node.lineno,
                " ".join(node.value.split()),
                shown or (name.startswith("landmark/") and not is_prose),
            )
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield name, token.start[0], token.string, False


def counted() -> dict[str, dict[str, list[tuple[str, int, str]]]]:
    """Return the occurrences: pattern -> user, internal -> places."""
    found: dict[str, dict[str, list[tuple[str, int, str]]]] = {
        pattern: {"user": [], "internal": []} for pattern in PATTERNS
    }
    compiled = {pattern: re.compile(expression, re.IGNORECASE) for pattern, expression in PATTERNS.items()}
    for name, line, text, visible in texts():
        for pattern, expression in compiled.items():
            for _ in expression.finditer(text):
                found[pattern]["user" if visible else "internal"].append((name, line, text))
    return found


def main() -> int:
    """Print the counts and compare them with the allowed ones. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", help="list the occurrences of the patterns whose name contains this text")
    parser.add_argument("--write", action="store_true", help="save the counts, if none has increased")
    arguments = parser.parse_args()
    found = counted()
    if arguments.list:
        for pattern, places in found.items():
            for kind in ("user", "internal") if arguments.list in pattern else ():
                for name, line, text in places[kind]:
                    print(f"{name}:{line}: [{kind}] {text[:140]}")
        return 0
    counts = {pattern: {kind: len(rows) for kind, rows in kinds.items()} for pattern, kinds in found.items()}
    allowed = json.loads(COUNTS.read_text()) if COUNTS.exists() else counts
    increased = defaultdict(list)
    print(f"{'pattern':42}{'user':>6}{'of':>6}{'internal':>10}{'of':>6}")
    for pattern, kinds in counts.items():
        limit = allowed.get(pattern, {"user": 0, "internal": 0})
        print(f"{pattern:42}{kinds['user']:>6}{limit['user']:>6}{kinds['internal']:>10}{limit['internal']:>6}")
        for kind, number in kinds.items():
            if number > limit[kind]:
                increased[pattern].append(kind)
    for pattern, increased_kinds in increased.items():
        print(
            f"error: more of {pattern!r} in {' and '.join(increased_kinds)} text; "
            "list them with: python scripts/language.py --list"
        )
    if increased:
        return 1
    if arguments.write or not COUNTS.exists():
        COUNTS.write_text(json.dumps(counts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
