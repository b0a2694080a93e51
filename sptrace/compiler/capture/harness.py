"""A network as everything here runs it: one image in, its logits out, its own backward passes out of play.

Nothing of this stays behind.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from sptrace.compiler.capture.answers import logits_of
from sptrace.compiler.capture.forward_alone import ForwardAlone, forward_alone
from sptrace.compiler.capture.unchanged import unchanged
from sptrace.errors import SptraceError, SptraceWarning, UnsupportedError

_HARNESSED = "_sptrace_mode"
_WRAPPERS: dict[type, str] = {nn.DataParallel: "module", nn.parallel.DistributedDataParallel: "module"}


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside of DataParallel and torch.compile, which only change how it is run."""
    while isinstance(module, nn.Module) and not isinstance(module, torch.jit.ScriptModule):
        name = "_orig_mod" if isinstance(module, OptimizedModule) else _WRAPPERS.get(type(module), "")
        if not name:
            return module
        module = module.get_submodule(name)
    return module


@contextmanager
def harnessed(module: nn.Module, example: Tensor) -> Iterator[nn.Module]:
    """Within this context the network takes an image, and answers with the logits alone.

    DataParallel and torch.compile are taken off wherever they are; backward passes and hooks of the network's own are
    left out, with a warning. What happens to the network meanwhile is undone (see `unchanged`). A network that is
    harnessed already is left as it is.

    Arguments:
        module: in eval mode; takes an image [N, 3, H, W] by position, by a keyword or by `*args`.
        example: float32 [N, 3, H, W]; the network is run on it first.

    Raises:
        UnsupportedError: the network is TorchScript, does not run, or does not give one tensor of logits.
        SptraceWarning: as a warning, if something is left out.
    """
    if _HARNESSED in vars(module):
        yield module
        return
    module = unwrapped(module)
    refuse_torchscript(module)
    mode, kind = ForwardAlone(), type(module)
    with unchanged(module) as state, _eagerly(), forward_alone(module, mode, state.applies):
        for part in module.modules():
            # Wrappers inside stay, for the network may look through them, but do nothing of their own.
            vars(part)["_compiled_call_impl"] = None
            if isinstance(part, nn.DataParallel):
                part.device_ids = []
        module.requires_grad_(False)
        vars(module)[_HARNESSED] = mode
        vars(module)["_sptrace_forward"] = _plain(vars(module).pop("forward", None))
        module.__class__ = _with_one_input(kind)
        try:
            with unchanged(module):
                _rehearse_first(module, mode, example)
            yield module
        finally:
            module.__class__ = kind


def refuse_torchscript(module: nn.Module) -> None:
    """Refuse what has no Python left."""
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            what = f"the network's module {path!r}" if path else "the network"
            raise UnsupportedError(
                f"{what} is TorchScript (torch.jit), which cannot be traced: compile the network it was made from"
            )


def _eagerly() -> Any:
    return torch.compiler.set_stance("force_eager")


def _plain(forward: Any) -> Any:
    """A `forward` given to an object, before torch.compile."""
    return getattr(forward, "_torchdynamo_orig_callable", forward)


def _with_one_input(kind: type[nn.Module]) -> type[nn.Module]:
    """A class like the network's own, whose forward takes an image and gives logits."""

    def forward(self: nn.Module, image: Tensor) -> Tensor:
        own = vars(self)["_sptrace_forward"] or super(harnessed_kind, self).forward  # type: ignore[arg-type]
        with vars(self)[_HARNESSED]:
            answer = _call(own, image)
        logits = _as_row(logits_of(answer))
        return (
            logits if type(logits) is Tensor or not _is_plain_subclass(logits) else logits.as_subclass(Tensor)
        )

    harnessed_kind = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return harnessed_kind


def _as_row(logits: Tensor) -> Tensor:
    """[N, classes] of a map of one place, and float32 of float64, which it has been made from."""
    if logits.ndim > 2 and all(size == 1 for size in logits.shape[2:]):
        logits = logits.flatten(1)
    return (
        logits.float()
        if logits.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
        else logits
    )


def _is_plain_subclass(logits: Tensor) -> bool:
    return type(logits).__torch_dispatch__ is Tensor.__torch_dispatch__


def _call(forward: Any, image: Tensor) -> Any:
    """By position, or where there is no place for that, by its name."""
    parameters = [
        one for one in inspect.signature(forward).parameters.values() if one.kind is not one.VAR_KEYWORD
    ]
    if parameters and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        required = [one for one in parameters if one.default is one.empty] or parameters
        return forward(**{required[0].name: image})
    return forward(image)


def rehearse(module: nn.Module, example: Tensor) -> None:
    """Run the network on a batch of two, as it is traced; what it keeps from call to call is then there."""
    one = example[:1].detach()
    try:
        _run(module, torch.cat([one] * 2))
    except UnsupportedError as error:
        _refuse_one_picture(module, one, error)
        raise


def _rehearse_first(module: nn.Module, mode: ForwardAlone, example: Tensor) -> None:
    """What does not work here is the network's own; and see what it does to gradients."""
    rehearse(module, example)
    if mode.stops:
        # no_grad around all of the network is for speed; around a part, it is a part that counts as constant.
        with torch.enable_grad():
            leaf = example[:1].detach().clone().requires_grad_()
            depends = module(leaf.clone()).requires_grad
        mode.ignores_stops = not depends
    if mode.ignores_stops:
        mode.left_out["no_grad and inference_mode, which would leave nothing to explain"] = None
    if mode.left_out:
        listed = ", ".join(list(mode.left_out)[:3]) + (", ..." if len(mode.left_out) > 3 else "")
        warnings.warn(
            f"left out: {listed}; what is explained is the network's forward pass alone",
            SptraceWarning,
            stacklevel=2,
        )


def _refuse_one_picture(module: nn.Module, one: Tensor, error: UnsupportedError) -> None:
    if error.__cause__ is None:
        return
    try:
        _run(module, one)
    except UnsupportedError:
        return
    raise UnsupportedError(
        "the network fixes the batch size (a reshape or an index with a constant in place of x.shape[0]): it runs "
        f"one picture, but not two ({reason(error.__cause__)}): make it work for any batch, then compile again"
    ) from error.__cause__


def _run(module: nn.Module, image: Tensor) -> None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(image.clone())
    except SptraceError:
        raise
    except Exception as error:  # whatever the network's own code raises
        raise UnsupportedError(f"the network cannot run the example: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An error in one line: the first that says anything, and the type where a message alone says little."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{f': {line}' if line else ''}"
