"""Evaluate a condition on the columns of a table, such as `loss < 5.3 and size == 'xs'`.

pandas would look names up in the calling code too (`@name`), and read any attribute and call any
method of what it finds: enough to run anything. A condition may come from somebody else, in a note
on a table to be pasted or in a message, so only a part of the language is evaluated.
"""

import ast
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pandas is slow to import
    import pandas as pd

QUOTED = re.compile(r"`([^`\n]*)`")
"""A column whose name is no name of Python."""
METHODS = {
    "str", "contains", "startswith", "endswith", "fullmatch", "match", "lower", "upper", "strip",
    "len", "isin", "isna", "isnull", "notna", "notnull", "between", "abs", "round", "min", "max",
    "mean", "median", "quantile", "std", "sum", "count", "rank", "fillna", "duplicated", "get",
    "eq", "ne", "lt", "le", "gt", "ge",
}  # fmt: skip
"""Attributes of a column that a condition may use: they read the column and return values."""
ALLOWED = (
    ast.Expression, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Call, ast.keyword,
    ast.Attribute, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.expr_context, ast.boolop,
    ast.unaryop, ast.operator, ast.cmpop,
)  # fmt: skip


def evaluate_condition(table: "pd.DataFrame", where: str) -> Any:
    """Evaluate a condition on the columns of a table.

    Raises:
        Exception: it is no such condition; pandas raises many types.
    """
    _check(where)
    # Without the names of the calling code; those of columns go before.
    return table.eval(where, engine="python", local_dict={}, global_dict={})


def is_condition(where: str) -> bool:
    """Return whether a text is a condition that is evaluated; its columns may not exist."""
    try:
        _check(where)
    except ValueError:
        return False
    return True


def _check(where: str) -> None:
    """Raise an error for a condition of which pandas would run more than a comparison of values."""
    quoted = QUOTED.findall(where)
    if any(mark in name for name in quoted for mark in "'\"#@"):
        raise ValueError("a name in backticks holds a quote, # or @")
    try:
        tree = ast.parse(QUOTED.sub("_quoted_", where).strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("it is not an expression; @ is not allowed") from None
    nodes = list(ast.walk(tree))
    for node in nodes:
        named = node.attr if isinstance(node, ast.Attribute) else None
        if not isinstance(node, ALLOWED) or (named and named not in METHODS):
            raise ValueError(f"{named or type(node).__name__} is not allowed")
    # A backtick within a text would hide from this check what pandas evaluates.
    if sum(isinstance(node, ast.Name) and node.id == "_quoted_" for node in nodes) != len(quoted):
        raise ValueError("a text or comment holds a backtick")
