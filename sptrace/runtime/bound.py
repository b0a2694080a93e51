"""Explaining batches of one size with buffers that stay where they are, on the CPU or on a device.

bound = sptrace.load("explainer.onnx", providers=["CUDAExecutionProvider"]).bind(8, device="cuda")
explanation = bound.explain(images, "espresso")  # through the same buffers every time
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sptrace.errors import SptraceError
from sptrace.runtime.explanation import Explanation, Target


class Explaining(Protocol):
    """What is asked of the explainer that is bound: to turn arguments into inputs, and outputs into an explanation."""

    def feeds(
        self, image: Any, target: Target, direction: Any, settings: Mapping[str, float]
    ) -> dict[str, NDArray[Any]]:
        """What the inputs are given, by name."""

    def explanation(
        self, feeds: Mapping[str, NDArray[Any]], answers: Mapping[str, NDArray[Any]]
    ) -> Explanation:
        """What the outputs say."""


class BoundExplainer:
    """An explainer whose inputs and outputs have their places in memory; `Explainer.bind` makes one.

    Nothing is allocated for them when it explains, and a CUDA graph can be replayed, which needs the same addresses.

    Attributes:
        inputs: the buffers that are read, by the names of the artifact's inputs; onnxruntime.OrtValue. Whoever has his
            data on the device writes it here (`data_ptr`, `update_inplace`) and calls `run`.
        outputs: the buffers that are written, by the names of its outputs. The next run overwrites them.
        batch: number of images.
    """

    def __init__(
        self,
        explainer: Explaining,
        session: onnxruntime.InferenceSession,
        batch: int,
        device: str,
        device_id: int,
    ) -> None:
        self._explainer, self._session, self.batch = explainer, session, batch
        self._device = (device, device_id)
        self._binding = session.io_binding()
        self.inputs = self._allocate(session.get_inputs())
        self.outputs = self._allocate(session.get_outputs())
        for name, buffer in self.inputs.items():
            self._binding.bind_ortvalue_input(name, buffer)
        for name, buffer in self.outputs.items():
            self._binding.bind_ortvalue_output(name, buffer)

    def explain(
        self,
        image: NDArray[np.floating[Any]],
        target: Target = None,
        *,
        direction: NDArray[np.floating[Any]] | None = None,
    ) -> Explanation:
        """Copy a batch into the buffers, run, and copy the answers out.

        Settings of the program are as they were when the artifact was compiled: onnxruntime cannot bind those.

        Arguments:
            image: floating point [batch, 3, H, W], as of `Explainer.explain`.
            target: see `Explainer.explain`.
            direction: see `Explainer.explain`.

        Raises:
            SptraceError: the images are not `batch` many, or as of `Explainer.explain`.
        """
        feeds = self._explainer.feeds(image, target, direction, {})
        given = len(feeds["image"])
        if given != self.batch:
            raise SptraceError(f"{given} images where {self.batch} are bound: bind({given}) takes as many")
        for name, buffer in self.inputs.items():
            buffer.update_inplace(feeds[name])
        self.run()
        answers = {name: np.array(buffer.numpy()) for name, buffer in self.outputs.items()}
        return self._explainer.explanation(feeds, answers)

    def run(self) -> None:
        """Explain what the input buffers hold; nothing is checked or copied, and the answers stay in `outputs`.

        Raises:
            SptraceError: onnxruntime refuses; the message says why.
        """
        try:
            self._binding.synchronize_inputs()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise SptraceError(f"onnxruntime cannot run it: {str(error).partition(chr(10))[0]}") from error

    def _allocate(self, items: list[Any]) -> dict[str, Any]:
        buffers = {}
        for item in items:
            sizes = [self.batch, *item.shape[1:]]
            dtype = np.int64 if item.type == "tensor(int64)" else np.float32
            try:
                buffers[item.name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    sizes, dtype, *self._device
                )
            except Exception as error:  # onnxruntime's exceptions have no common base
                device, number = self._device
                raise SptraceError(
                    f"there is no memory on {device}:{number}: {str(error).partition(chr(10))[0]}"
                ) from error
        return buffers
