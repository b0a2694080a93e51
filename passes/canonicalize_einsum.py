"""Every einsum of one or two tensors becomes one product of matrices between permutations."""

from __future__ import annotations

import string
from collections.abc import Sequence

from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, shape, value
from sptrace.compiler.graph.sizes import joint

aten = ops.aten


def canonicalize_einsum(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    Before:  y = einsum("bhid,bhjd->bhij", [a, b])
    After:   y = matmul(a, permute(b, [0, 1, 3, 2]))

    1. letters of both factors and the result number the products, letters of both alone are summed by the product,
       letters of one factor alone are its rows or columns; in the result they are permuted into their order
    2. letters that one factor alone has and the result lacks are summed first
    3. three factors and more: from left to right
    4. a letter twice in a factor: the diagonal; without "->" the result has the letters that stand once, in their order
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target == aten.einsum.default:
            with builder.replacing(node):
                builder.replace(node, _product(builder, node, str(node.args[0]), list(node.args[1])))
            count += 1
    return count


def _product(builder: GraphBuilder, node: fx.Node, equation: str, factors: list[fx.Node]) -> fx.Node:
    terms, result = _letters(node, equation, [value(factor).ndim for factor in factors])
    pairs = [_diagonals(builder, factor, term) for factor, term in zip(factors, terms, strict=True)]
    factors, terms = [factor for factor, _ in pairs], [term for _, term in pairs]
    left, first = terms[0], factors[0]
    for index, (right, second) in enumerate(zip(terms[1:], factors[1:], strict=True), start=1):
        later = set(result).union(*terms[index + 1 :])
        left, first = _pair(builder, first, left, second, right, later)
    first, left = _sum_out(builder, first, left, set(result))
    return _permute(builder, first, [left.index(letter) for letter in result])


def _letters(node: fx.Node, equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of every factor and of the result, those that "..." stands for among them."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        once = sorted(letter for letter in set(inputs) - {",", "."} if inputs.count(letter) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    free = [letter for letter in string.ascii_letters if letter not in equation]
    widest = max(rank - len(term.replace("...", "")) for rank, term in zip(ranks, terms, strict=True))
    named = "".join(free[:widest])
    full = [
        term.replace("...", named[widest - (rank - len(term.replace("...", ""))) :])
        for rank, term in zip(ranks, terms, strict=True)
    ]
    return full, result.replace("...", named)


def _diagonals(builder: GraphBuilder, factor: fx.Node, term: str) -> tuple[fx.Node, str]:
    """A letter that stands twice reads the diagonal of its two dimensions, which then is the last one."""
    for letter in sorted(set(term)):
        while term.count(letter) > 1:
            first, second = term.index(letter), term.rindex(letter)
            factor = builder.call(aten.diagonal.default, factor, 0, first, second)
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + letter
    return factor, term


def _pair(
    builder: GraphBuilder, a: fx.Node, left: str, b: fx.Node, right: str, later: set[str]
) -> tuple[str, fx.Node]:
    a, left = _sum_out(builder, a, left, later | set(right))
    b, right = _sum_out(builder, b, right, later | set(left))
    shared = [letter for letter in left if letter in right]
    batch = [letter for letter in shared if letter in later]
    summed = [letter for letter in shared if letter not in later]
    rows = [letter for letter in left if letter not in shared]
    columns = [letter for letter in right if letter not in shared]
    sizes = dict(zip(right, shape(b), strict=True)) | dict(zip(left, shape(a), strict=True))
    outer = [sizes[letter] for letter in batch]
    matrices = []
    for tensor, letters, order in ((a, left, [rows, summed]), (b, right, [summed, columns])):
        wanted = [*batch, *order[0], *order[1]]
        turned = _permute(builder, tensor, [letters.index(letter) for letter in wanted])
        inner = [
            joint(shape(turned)[len(batch) : len(batch) + len(order[0])]),
            joint(shape(turned)[len(batch) + len(order[0]) :]),
        ]
        matrices.append(builder.reshape(turned, [*outer, *inner]))
    product = builder.call(aten.matmul.default, *matrices)
    result = [*batch, *rows, *columns]
    return "".join(result), builder.reshape(product, [sizes[letter] for letter in result])


def _sum_out(builder: GraphBuilder, node: fx.Node, letters: str, kept: set[str]) -> tuple[fx.Node, str]:
    dims = [dim for dim, letter in enumerate(letters) if letter not in kept]
    if not dims:
        return node, letters
    total = builder.call(aten.sum.dim_IntList, node, dims)
    return total, "".join(letter for letter in letters if letter in kept)


def _permute(builder: GraphBuilder, node: fx.Node, order: list[int]) -> fx.Node:
    return node if order == sorted(order) else builder.call(aten.permute.default, node, order)
