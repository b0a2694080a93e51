"""Which functions a graph that nobody vouches for may call: operators of ATen, and arithmetic of sizes.

A name from a file is looked up in these lists and nowhere else; there is no chain of getattr from `torch`. Of ATen's
operators those are let through that make tensors and numbers of tensors and numbers. `aten::save`, `aten::from_file`
and others that touch files or the process take texts or give neither, and are refused; so are internal ones (with an
underscore) that no export of a network writes. What the other kernels of ATen do with their numbers is trusted.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from sptrace.compiler.capture.contexts import AUTOCAST, GRAD_MODE
from sptrace.errors import SptraceError
from sptrace.models.libraries import shown

_NAME = re.compile(r"torch\.ops\.(aten|torchvision)\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")
# Those of torchvision that sptrace has rules for. They exist once torchvision is imported.
_TORCHVISION = {"deform_conv2d", "roi_align"}
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(operator.eq, operator.ne, operator.le, operator.ge, operator.lt, operator.gt),
    *(
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.truediv,
        operator.mod,
        operator.pow,
    ),
    *(operator.neg, operator.pos, operator.and_, operator.or_, operator.lshift, operator.rshift),
    *(math.trunc, torch.sym_not, torch.sym_int, torch.sym_float, torch.sym_ite, torch.sym_max, torch.sym_min),
    torch.sym_sqrt,
)
SIZE_FUNCTIONS = {f"{function.__module__}.{function.__name__}": function for function in _FUNCTIONS}
REGIONS = {f"torch.ops.higher_order.{region.__name__}": region for region in (AUTOCAST, GRAD_MODE)}
# Of texts, those that choose one of an operator's ways to work, and messages; names of files are not among them.
_TEXTS = {
    *("approximate", "assert_msg", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord"),
    *("pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side", "UPLO"),
}
_INTERNAL = {
    *(
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "_assert_async",
        "_assert_scalar",
        "_assert_tensor_metadata",
    ),
    *("_batch_norm_impl_index", "_batch_norm_no_update", "_cdist_forward", "_conj", "_convolution"),
    *(
        "_embedding_bag",
        "_euclidean_dist",
        "_fft_c2c",
        "_fft_c2r",
        "_fft_r2c",
        "_is_all_true",
        "_is_any_true",
    ),
    *("_local_scalar_dense", "_log_softmax", "_masked_softmax", "_native_batch_norm_legit"),
    *("_native_batch_norm_legit_no_training", "_native_multi_head_attention", "_neg_view", "_pad_circular"),
    *("_pad_enum", "_pdist_forward", "_reshape_alias", "_safe_softmax", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_shape_as_tensor", "_softmax", "_stack", "_to_copy"),
    *(
        "_transformer_encoder_layer_fwd",
        "_trilinear",
        "_unsafe_index",
        "_unsafe_view",
        "_upsample_bicubic2d_aa",
    ),
    *("_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d"),
    *("_upsample_nearest_exact3d", "_weight_norm", "_weight_norm_interface"),
}
_RETURNS = {"Tensor", "List[Tensor]", "int", "float", "bool", "number"}
_RETURN_NOTHING = {"aten::_assert_scalar", "aten::_assert_async", "aten::_assert_tensor_metadata"} | {
    *("aten::sym_constrain_range", "aten::sym_constrain_range_for_size")
}


def operator_named(name: str) -> OpOverload:
    """Find an operator by the name that a file gives it.

    Raises:
        SptraceError: it is none of those above.
    """
    found = _NAME.fullmatch(name)
    if found is not None:
        namespace, packet, overload = found.groups()
        if namespace == "torchvision" and packet in _TORCHVISION:
            _import_torchvision(name)
        if namespace == "aten" or packet in _TORCHVISION:
            target = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
            if type(target) is OpOverload and _is_public(packet) and _is_harmless(target._schema):
                return target
    raise SptraceError(
        f"the operator {shown(name)} is none of ATen's that sptrace runs from a file: export the network without it"
    )


def _import_torchvision(name: str) -> None:
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        raise SptraceError(f"the file calls {name}: pip install torchvision") from error


def _is_public(packet: str) -> bool:
    return packet[0] != "_" or packet in _INTERNAL or packet.endswith("__")


def _is_harmless(schema: torch.FunctionSchema) -> bool:
    if any("str" in str(argument.type) and argument.name not in _TEXTS for argument in schema.arguments):
        return False
    if not schema.returns:
        return schema.name in _RETURN_NOTHING
    return all(str(given.type) in _RETURNS for given in schema.returns)
