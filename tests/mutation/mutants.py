"""Finding the places of a module that can be changed, and changing one of them.

The changes are Cosmic Ray's operators, as far as they are faults that people make, and two
of our own: a statement is left out, and two neighbours change places. The latter are for
what Cosmic Ray has nothing for: order, and a step that is forgotten.

A place is passed over where a change could have no effect on what the code does:
annotations, docstrings, log messages, assertions, the values of constants that tune.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

__all__ = ["Mutant", "Place", "apply", "places"]

_COMPARISONS = {
    "Eq": ("NotEq",),
    "NotEq": ("Eq",),
    "Lt": ("LtE", "GtE"),
    "LtE": ("Lt", "Gt"),
    "Gt": ("GtE", "LtE"),
    "GtE": ("Gt", "Lt"),
    "Is": ("IsNot",),
    "IsNot": ("Is",),
}
_BINARY = {
    "Add": ("Sub",),
    "Sub": ("Add",),
    "Mul": ("FloorDiv",),
    "Div": ("Mul",),
    "FloorDiv": ("Mul",),
    "Mod": ("FloorDiv",),
    "BitOr": ("BitAnd",),
    "BitAnd": ("BitOr",),
    "LShift": ("RShift",),
    "RShift": ("LShift",),
}
_COSMIC = (
    *(
        f"ReplaceComparisonOperator_{a}_{b}"
        for a, others in _COMPARISONS.items()
        for b in others
    ),
    *(
        f"ReplaceBinaryOperator_{a}_{b}"
        for a, others in _BINARY.items()
        for b in others
    ),
    "ReplaceUnaryOperator_Delete_Not",
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ExceptionReplacer",
    "NumberReplacer",
    "ZeroIterationForLoop",
)


def _is_step(node: Any) -> bool:
    """Whether a statement is a step: it calls, awaits, raises, leaves, or sets a field."""
    if node.type != "simple_stmt":
        return False
    first = node.children[0]
    if first.type in ("raise_stmt", "del_stmt", "continue_stmt", "break_stmt"):
        return True
    if first.type == "keyword":
        return first.value in ("return", "continue", "break")
    if first.type in ("atom_expr", "power", "await_expr"):
        return True
    if first.type == "expr_stmt":
        target = first.children[0].type
        is_changed = getattr(first.children[1], "value", "=") not in ("=", ":")
        return target in ("atom_expr", "power") or is_changed
    return False


class LeaveOut:
    """Replaces a step by ``pass``."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if _is_step(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(node.get_first_leaf().prefix + "pass\n")


class Exchange:
    """Two steps that follow each other change places."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        for first, second in self._pairs(node):
            yield node.children[first].start_pos, node.children[second].end_pos

    def _pairs(self, node: Any) -> list[tuple[int, int]]:
        if node.type not in ("suite", "file_input"):
            return []
        pairs = enumerate(pairwise(node.children))
        return [(i, i + 1) for i, (a, b) in pairs if _have_an_order(a, b)]

    def mutate(self, node: Any, index: int) -> Any:
        first, second = self._pairs(node)[index]
        children = node.children
        children[first], children[second] = children[second], children[first]
        return node


def _have_an_order(first: Any, second: Any) -> bool:
    """Whether two statements can change places, and something may come of it."""
    if not (_is_step(first) and _is_step(second)):
        return False
    words = {node.get_first_leaf().value for node in (first, second)}
    if words & {"return", "raise", "continue", "break"}:
        return False
    # Of two fields that are set, either may be first.
    return "expr_stmt" not in {first.children[0].type} & {second.children[0].type}


def _operator(name: str) -> Any:
    own = {"LeaveOut": LeaveOut, "Exchange": Exchange}
    return own[name]() if name in own else get_operator(f"core/{name}")()


OPERATORS = (*_COSMIC, "LeaveOut", "Exchange")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the *occurrence*-th one that *operator* can make in the module."""

    operator: str
    occurrence: int
    line: int


@dataclass(frozen=True, slots=True)
class Place:
    """A place of a module, and the changes that can be made there."""

    module: str
    line: int
    column: int
    mutants: tuple[Mutant, ...]


def places(module: str, source: str) -> list[Place]:
    """All places of a module's *source* that can be changed, in their order."""
    passed_over = _Uninteresting(source)
    found: dict[tuple[int, int, str], list[Mutant]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = _operator(name)
        positions = [
            position for node in nodes for position in operator.mutation_positions(node)
        ]
        for occurrence, ((line, column), _) in enumerate(positions):
            if not passed_over.covers(line, column):
                # What is left out or moved is another place than the operators within.
                kind = name if name in ("LeaveOut", "Exchange") else ""
                mutant = Mutant(name, occurrence, line)
                found.setdefault((line, column, kind), []).append(mutant)
    return [
        Place(module, line, column, tuple(mutants))
        for (line, column, _), mutants in sorted(found.items())
    ]


def apply(source: str, mutant: Mutant) -> str | None:
    """The changed *source*; None if it would not compile, or is the same."""
    mutated: str | None = mutate_code(
        source, _operator(mutant.operator), mutant.occurrence
    )
    if mutated is None or mutated == source:
        return None
    try:
        if ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source)):
            return None
        compile(mutated, "mutant", "exec")
    except SyntaxError:
        return None
    return mutated


class _Uninteresting(ast.NodeVisitor):
    """The parts of a module whose change could be no fault."""

    def __init__(self, source: str) -> None:
        self._spans: list[tuple[tuple[int, int], tuple[int, int]]] = []
        tree = ast.parse(source)
        for statement in tree.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
                statement.value, ast.Constant | ast.BinOp | ast.Subscript | ast.Name
            ):
                self._add(statement)  # a figure, or an alias of a type
        self.visit(tree)

    def _add(self, node: ast.AST | None) -> None:
        if isinstance(node, ast.expr | ast.stmt):
            end = node.end_lineno or node.lineno, node.end_col_offset or 0
            self._spans.append(((node.lineno, node.col_offset), end))

    def covers(self, line: int, column: int) -> bool:
        return any(start <= (line, column) < end for start, end in self._spans)

    def visit_arg(self, node: ast.arg) -> None:
        self._add(node.annotation)

    def visit_arguments(self, node: ast.arguments) -> None:
        for argument in [*node.posonlyargs, *node.args, *node.kwonlyargs]:
            self._add(argument.annotation)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._add(node.returns)
        for decorator in node.decorator_list:
            self._add(decorator)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            self._add(decorator)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._add(node.annotation)
        self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        self._add(node)

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._add(node)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            self._add(node)  # a docstring
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id == "logger"
        ):
            self._add(node)
        if isinstance(function, ast.Name) and function.id == "cast":
            self._add(node.args[0])
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {t.id for t in node.targets if isinstance(t, ast.Name)}
        if names & {"__all__", "__slots__"}:
            self._add(node)
        self.generic_visit(node)
