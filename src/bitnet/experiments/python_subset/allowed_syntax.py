"""The Python subset that is ever run: integers, if, for, while, return, print. Reads syntax trees, runs
nothing.

`refusal` is a list of what is allowed, not of what is dangerous: a kind of syntax that nobody thought of is
refused. No attributes, so no way from a number to its class and on to the interpreter; no imports, no
strings, no lists, no power, no functions but print and range, no names with two underscores. What a program
may still do is never end, or multiply until memory is full; that is the business of sandbox.py.
"""

from __future__ import annotations

import ast
import itertools
import warnings
from collections.abc import Iterator

LONGEST_SOURCE = 4_000  # characters
DEEPEST = 100  # levels of the syntax tree; a guess, far above what a function of the plan has
LARGEST_CONSTANT = 1_000_000
BUILTINS = ("print", "range")
NODES = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.For,
    ast.While, ast.If, ast.Expr, ast.Call, ast.Name, ast.Load, ast.Store, ast.Constant, ast.BinOp, ast.Add,
    ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.UnaryOp, ast.USub, ast.Not, ast.BoolOp, ast.And, ast.Or,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


def parsed(source: str) -> ast.Module | None:
    """The syntax tree, or None where there is none or it is too deep; Python's own limit of depth is moved by
    other libraries.
    """
    if len(source) > LONGEST_SOURCE:
        return None
    try:
        with warnings.catch_warnings():  # `1if x` and the like warn, and it is not the user who wrote them
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return None if _too_deep(tree) else tree


def _too_deep(tree: ast.Module) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return bool(level)


def well_formed(source: str) -> bool:
    """Whether a source defines something, and every block of it is indented by four spaces more than what is
    around it.
    """
    tree = parsed(source)
    if tree is None or not tree.body or "\t" in source:
        return False
    depths = [len(line) - len(line.lstrip()) for line in source.splitlines() if line.strip()]
    steps = [after - before for before, after in itertools.pairwise(depths)]
    return all(depth % 4 == 0 for depth in depths) and all(step <= 4 for step in steps)


def refusal(source: str, name: str) -> str | None:
    """Why a source is not run, or None: it must be one function called `name` within the subset."""
    tree = parsed(source)
    if tree is None:
        return "it does not parse"
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or tree.body[0].name != name:
        return f"it is not one function {name}"
    return next(_violations(tree), None)


def _violations(tree: ast.Module) -> Iterator[str]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            yield f"{type(node).__name__} is not in the subset"
        elif isinstance(node, ast.FunctionDef) and (node is not tree.body[0] or not _is_plain(node)):
            yield "functions inside functions, decorators, defaults, annotations and * are not in the subset"
        elif isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in BUILTINS and not node.keywords
        ):
            yield f"only {' and '.join(BUILTINS)} may be called"
        elif isinstance(node, ast.Constant) and not (
            _is_number(node.value) or (isinstance(node.value, str) and id(node) in docstrings)
        ):
            yield f"the constant {node.value!r:.40} is not in the subset"
        yield from (
            f"the name {word:.40} is not in the subset"
            for word in _words(node)
            if "__" in word or word.startswith("_")
        )


def _is_plain(node: ast.FunctionDef) -> bool:
    arguments = node.args
    extras = (
        arguments.posonlyargs,
        arguments.kwonlyargs,
        arguments.defaults,
        node.decorator_list,
        getattr(node, "type_params", []),
    )
    bare = arguments.vararg is None and arguments.kwarg is None and node.returns is None
    return bare and not any(extras) and all(argument.annotation is None for argument in arguments.args)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and abs(value) <= LARGEST_CONSTANT  # True and False are ints too


def _words(node: ast.AST) -> Iterator[str]:
    for field in ("id", "name", "arg"):
        word = getattr(node, field, None)
        if isinstance(word, str):
            yield word
