"""The network alone, taken out of an artifact: metrics ask it hundreds of times for every explanation."""

from __future__ import annotations

import os

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sptrace.artifact.description import METADATA_KEY, Description
from sptrace.artifact.links import scores

PIXELS = 2**18
"""Of the pictures at a time, 5 of 224 x 224: more are no faster on a CPU."""


class Predictor:
    """Logits of pictures, by the forward half of an artifact in onnxruntime.

    Arguments:
        artifact: an ONNX file written by sptrace whose input is float32. Of an ascent a step is computed too.
        threads: as in `sptrace.load`.

    Attributes:
        link: what makes probabilities of what it answers, one of `sptrace.artifact.links.LINKS`.
        classes: number of classes.
    """

    def __init__(self, artifact: str | os.PathLike[str], threads: int | None = None) -> None:
        model = ir.load(artifact)
        description = Description.from_json(model.metadata_props[METADATA_KEY])
        self.link, self.classes, self._labels = description.link, description.classes, description.labels
        logits = [output for output in model.graph.outputs if output.name == "logits"]
        model.graph.outputs.clear()
        model.graph.outputs.extend(logits)
        RemoveUnusedNodesPass()(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        self._settings = {
            item.name: np.array(1, np.int64)
            for item in self._session.get_overridable_initializers()
            if item.name == "steps"
        }

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 [N, classes], of images, float32 [N, 3, H, W]; of a pair both scores."""
        parts = []
        batch = max(1, PIXELS // (images.shape[2] * images.shape[3]))
        for first in range(0, len(images), batch):
            part = np.ascontiguousarray(images[first : first + batch], dtype=np.float32)
            feeds = {"image": part, "target": np.zeros(len(part), np.int64), **self._settings}
            parts.append(self._session.run(["logits"], feeds)[0])
        return scores(self.link, np.concatenate(parts), self._labels)

    def score(self, images: NDArray[np.float32], target: int) -> NDArray[np.float64]:
        """The logit of one class, float64 [N]."""
        return self(images)[:, target].astype(np.float64)
