"""Running artifacts, with onnxruntime and numpy alone.

explainer = sptrace.load("resnet50.onnx")
explanation = explainer.explain(image, "espresso")
"""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sptrace.artifact import links
from sptrace.artifact.description import METADATA_KEY, Description
from sptrace.artifact.numbers import is_whole, plain
from sptrace.artifact.programs import PROGRAMS, program_kind
from sptrace.errors import SptraceError, SptraceWarning
from sptrace.runtime import targets
from sptrace.runtime.bound import BoundExplainer
from sptrace.runtime.checks import checked, outside
from sptrace.runtime.explanation import Explanation, Target, warn_undefined
from sptrace.runtime.session import Provider, start
from sptrace.runtime.targets import PREDICTED

SURE = 1 - 1e-5
"""From where on a probability's slope has less than three digits in float32."""
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class Explainer:
    """A loaded artifact; `load` makes one.

    Attributes:
        description: all that the artifact says about itself.
        labels: one name per class, or None.
        classes: number of classes; two where one logit stands for two.
        input_size: height and width of `image`.
        input_range: the values of black and white in `image`.
        providers: names of the execution providers in use, in the order of preference.
        units: how many classes there are to explain, or channels if the artifact explains a layer.
        takes_pictures: is `image` a photograph, uint8 [N, H, W, 3], which the artifact prepares itself?
        takes_direction: does it explain a direction, in place of a target?
        settings: what `explain` takes beside these, with the dtype of each.
        batch: how many images it takes at a time; None for any number.
        warned: was it said that an image lies outside of `input_range`? That is said once; set it, and it never is.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, description: Description, batch: int | None = None
    ) -> None:
        self._session = session
        self.description = description
        self.batch = batch
        self.warned = self._said_sure = False
        self.labels = description.labels
        self.classes = description.classes
        self.input_size = description.preprocessing.size
        self.input_range = description.preprocessing.input_range
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.settings = {
            item.name: np.dtype(_DTYPES[item.type]) for item in session.get_overridable_initializers()
        }
        shapes = {item.name: item.shape for item in session.get_outputs()}
        self._outputs = list(shapes)
        self._layer = description.settings["layer"] if "activation" in shapes else None
        self._unit = description.settings.get("unit")
        if self._layer is None and links.is_pair(int(shapes["logits"][1]), self.labels):
            self._unit = 1  # of one logit for two classes
        self.units = self.classes if self._layer is None else int(shapes["activation"][1])
        self._directions = int(shapes["logits" if self._layer is None else "activation"][1])
        self.takes_pictures = description.input == "uint8"
        self.takes_direction = any(item.name == "direction" for item in session.get_inputs())

    def explain(
        self,
        image: NDArray[np.floating[Any]] | NDArray[np.uint8],
        target: Target = None,
        *,
        direction: NDArray[np.floating[Any]] | None = None,
        **settings: float,
    ) -> Explanation:
        """Explain a batch of images.

        Arguments:
            image: floating point [N, 3, H, W] in `input_range`; `sptrace.photo.prepare` makes one from a
                photograph. Of an artifact that `takes_pictures`: uint8 [N, H, W, 3] of any H and W.
            target: the class to explain: its index or its name, for all images or one per image. A name is
                a label, or one of the comma-separated parts of a label in any case. Digits are an index, also as text,
                unless there is none such; "label:7" is the class called 7. None, or an index of -1: the predicted
                class, or the one logit (of two classes class 1). If the artifact explains a layer, the index of a
                channel; -1 for the unit that was compiled in or else the channel with the largest value.
            direction: floating point [N, units], or [units] for all images: what to explain in place of a target,
                for artifacts that were compiled so.
            settings: of the program, those that can be given at run time (`settings` names them); for example
                steps=5, alpha=20.0 of an ascent. Left out, they are as they were when the artifact was compiled.

        Returns:
            The attribution, the logits, the classes or channels explained, of an ascent the picture it arrives at, of a
            layer its channels.

        Warns:
            SptraceWarning: `image` lies outside of `input_range`, or a probability is explained that is as good as 1,
                each said once; an attribution is NaN or infinite.

        Raises:
            SptraceError: `image` has the wrong type or shape, or holds NaN; `target` is not a class of this network,
                `direction` is missing or not wanted or has the wrong shape, or the program has no such setting.
        """
        feeds = self.feeds(image, target, direction, settings)
        answers = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        return self.explanation(feeds, answers)

    def feeds(
        self,
        image: NDArray[np.floating[Any]] | NDArray[np.uint8],
        target: Target,
        direction: NDArray[np.floating[Any]] | None,
        settings: Mapping[str, float],
    ) -> dict[str, NDArray[Any]]:
        """What the artifact's inputs are given for these arguments of `explain`, by name; errors as there."""
        description = self.description
        image = checked(image, description.preprocessing, description.input, self.batch)
        if not (self.warned or self.takes_pictures):
            self._warn_outside(image)
        feeds = {"image": image, **self._feeds(settings)}
        if self.takes_direction:
            feeds["direction"] = self._check_direction(direction, target, len(image))
        elif direction is not None:
            raise SptraceError(
                "this artifact takes a target, no direction: compile it with direction=True (--direction) for that"
            )
        else:
            feeds["target"] = self._resolve(target, len(image))
        return feeds

    def _warn_outside(self, image: NDArray[Any]) -> None:
        """Say so if the image is none: far from what the gates were measured at they are as good as hard."""
        values = outside(image, self.input_range)
        if values is not None:
            self.warned = True
            low, high = self.input_range
            warnings.warn(
                f"the image has {values}: scale pictures so that black is {low:g} and white {high:g} "
                "(sptrace.photo.prepare does); said once",
                SptraceWarning,
                stacklevel=4,
            )

    def _warn_sure(self, explanation: Explanation) -> None:
        """Say so where a probability is explained that is as good as 1: 1 - p has few digits, and so has its slope."""
        probabilities, targets = explanation.probabilities, explanation.target
        if self._said_sure or self.description.link != "identity" or self._layer or targets is None:
            return
        assert probabilities is not None
        explained = np.take_along_axis(probabilities, targets[:, None], axis=1)
        if (explained > SURE).any():
            self._said_sure = True
            warnings.warn(
                f"what is explained is a probability of {float(explained.max()):.7g}: float32 keeps few digits of how "
                "it changes, and the attribution may be noise; compile the network without what makes probabilities "
                "of its logits; said once",
                SptraceWarning,
                stacklevel=4,
            )

    def explanation(
        self, feeds: Mapping[str, NDArray[Any]], answers: Mapping[str, NDArray[Any]]
    ) -> Explanation:
        """The artifact's answers to what it was given, each by name."""
        targets = None if self.takes_direction else self._resolved(feeds["target"], answers)
        given = Explanation(target=targets, labels=self.labels, link=self.description.link, **answers)
        self._warn_sure(given)
        warn_undefined(given)
        return given

    def bind(self, batch: int, *, device: str = "cpu", device_id: int = 0) -> BoundExplainer:
        """Give inputs and outputs of one batch size places in memory that stay the same.

        Arguments:
            batch: number of images, 1 or more; that of `load`, if one was given there.
            device: "cpu", or "cuda" where the CUDA or TensorRT provider runs the artifact.
            device_id: the number of the device.

        Raises:
            SptraceError: the batch is another than that of `load`, there is no such device, or the artifact takes
                photographs, whose size is not known.
        """
        if self.takes_pictures:
            raise SptraceError(
                "this artifact takes photographs of any size, for which no place can be kept: "
                "compile it with input float32"
            )
        batch = plain(batch)
        if not is_whole(batch) or batch < 1 or (self.batch is not None and batch != self.batch):
            wanted = "1 or more" if self.batch is None else f"{self.batch}, as it was loaded"
            raise SptraceError(f"cannot bind a batch of {batch!r}: give {wanted}")
        return BoundExplainer(self, self._session, batch, device, device_id)

    def attribute(
        self,
        image: NDArray[np.floating[Any]] | NDArray[np.uint8],
        target: Target = None,
        *,
        direction: NDArray[np.floating[Any]] | None = None,
        **settings: float,
    ) -> NDArray[np.float32]:
        """The attribution alone, float32 [N, 3, H, W]; arguments and errors as in `explain`."""
        return self.explain(image, target, direction=direction, **settings).attribution

    def _resolved(self, targets: NDArray[np.int64], answers: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """The targets with every -1 replaced by what the artifact took it for."""
        unnamed = answers.get("activation", answers["logits"]).argmax(axis=1)
        return np.where(targets == PREDICTED, unnamed if self._unit is None else self._unit, targets)

    def _check_direction(
        self, direction: NDArray[np.floating[Any]] | None, target: Target, samples: int
    ) -> NDArray[np.float32]:
        """The direction as float32 [N, units]."""
        wanted = f"[N, {self._directions}]"
        if target is not None:
            raise SptraceError(f"this artifact takes no target: pass direction=, float32 {wanted}")
        if direction is None:
            raise SptraceError(f"this artifact explains a direction: pass direction=, float32 {wanted}")
        direction = np.asarray(direction)
        if not np.issubdtype(direction.dtype, np.floating):
            raise SptraceError(f"the direction is {direction.dtype}: pass float32 {wanted}")
        if direction.shape == (self._directions,):
            direction = np.broadcast_to(direction, (samples, self._directions))
        if direction.shape != (samples, self._directions):
            raise SptraceError(
                f"the direction is {list(direction.shape)}: for {samples} images the artifact takes "
                f"[{samples}, {self._directions}], or [{self._directions}] for all"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            direction = np.ascontiguousarray(direction, dtype=np.float32)
        if not np.isfinite(direction).all():
            raise SptraceError("the direction holds NaN or infinite values: mend it first")
        return direction

    def _feeds(self, settings: Mapping[str, float]) -> dict[str, NDArray[Any]]:
        """The settings as arrays of the types that the artifact takes, checked as when compiling."""
        feeds = {}
        options = program_kind(self.description.program).options if settings else {}
        for name, setting in settings.items():
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise SptraceError(f"{name!r} cannot be set at run time: this artifact takes {known}")
            if not options[name].check(plain(setting)):
                raise SptraceError(f"{name} must be {options[name].wanted}, not {setting!r}")
            feeds[name] = np.array(setting, dtype=self.settings[name])
        return feeds

    def _resolve(self, target: Target, samples: int) -> NDArray[np.int64]:
        """The target as an array of indices, int64 [N]; -1 for the predicted class."""
        if target is None:
            target = PREDICTED
        try:
            targets = [target] * samples if isinstance(target, str) else list(target)  # type: ignore[arg-type]
        except TypeError:  # not a sequence: one class for all
            targets = [target] * samples
        if len(targets) != samples:
            raise SptraceError(f"{len(targets)} targets for {samples} images: give one, or one per image")
        return np.array([self._index(one) for one in targets], dtype=np.int64)

    def _written(self, text: str) -> int:
        """The index of a class given as text, as `sptrace.runtime.targets.of_text` reads it; channels have no names."""
        if self._layer is None:
            return targets.of_text(text, self.labels, self.units)
        index = targets.index_of(text)
        if index is None:
            raise SptraceError(
                f"the artifact explains channels of {self._layer!r}, which have no names: "
                f"instead of {text!r} give 0 to {self.units - 1}"
            )
        return self._index(index)

    def _index(self, target: object) -> int:
        """The index of a class given by index or name."""
        if isinstance(target, str):
            return self._written(target)
        try:
            index = operator.index(target)  # type: ignore[arg-type]
        except TypeError:
            index = None
        if index is None or isinstance(target, bool):
            if self._layer is not None:
                raise SptraceError(f"{target!r} is not a channel: give its index, 0 to {self.units - 1}")
            raise SptraceError(f"{target!r} is not a class: give its index or its name")
        if not PREDICTED <= index < self.units:
            kind, unnamed = ("class", "predicted") if self._layer is None else ("channel", "largest")
            default = f"the {unnamed} one" if self._unit is None else f"{kind} {self._unit}"
            raise SptraceError(f"there is no {kind} {index}: give 0 to {self.units - 1}, or -1 for {default}")
        return index


def load(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    batch: int | None = None,
) -> Explainer:
    """Load an artifact.

    Arguments:
        path: an ONNX file written by sptrace.
        providers: onnxruntime's execution providers in order of preference, as names or (name, options)
            pairs, whose options are passed on as they are. What they cannot run, onnxruntime runs on the CPU. None:
            the CPU alone.
        threads: how many threads one operator may use on the CPU; None lets onnxruntime choose.
        batch: take this number of images at a time and no other. Then onnxruntime works out all sizes when it loads,
            and a CUDA graph has no size left on the CPU. None: any number.

    Returns:
        An explainer that is ready to run.

    Raises:
        SptraceError: the file is missing, is not ONNX, or was not written by sptrace; a provider is not
            available.
    """
    if not isinstance(path, str | os.PathLike):
        raise SptraceError(f"the path of an artifact is a text or a path, not {type(path).__name__}")
    if not os.path.isfile(path):
        raise SptraceError(f"there is no file {path}: give an artifact that `sptrace compile` wrote")
    session = start(path, providers, threads, batch)
    metadata = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in metadata:
        raise SptraceError(f"{path} was not written by sptrace: compile the network with `sptrace compile`")
    description = Description.from_json(metadata[METADATA_KEY])
    _require_agreement(path, session, description)
    return Explainer(session, description, batch)


def _require_agreement(
    path: str | os.PathLike[str], session: onnxruntime.InferenceSession, description: Description
) -> None:
    """Refuse a file whose inputs and outputs are not what its description says."""
    inputs = {item.name: item.shape for item in session.get_inputs()}
    outputs = {item.name: item.shape for item in session.get_outputs()}
    settings = [item.name for item in session.get_overridable_initializers()]
    known_program = settings or description.program in PROGRAMS  # another version's may have no settings
    options = program_kind(description.program).options if known_program else {}
    labels = description.labels
    height, width = description.preprocessing.size
    image = [3, height, width] if description.input == "float32" else [None, None, 3]
    known = {item.name for item in fields(Explanation)} - {"target", "labels", "link"}
    disagreement = next(
        (
            name
            for name, agrees in {
                "image": _has_shape(inputs.get("image"), image),
                "target": len({"target", "direction"} & inputs.keys()) == 1,
                "attribution": {"attribution", "logits"} <= outputs.keys() <= known,
                "logits": _has_shape(outputs.get("logits"), [description.classes])
                or (
                    description.classes == 2
                    and links.is_pair(1, labels)
                    and _has_shape(outputs.get("logits"), [1])
                ),
                "labels": labels is None or len(labels) == description.classes,
                "overlay": description.overlay == ("overlay" in outputs),
                "activation": "activation" not in outputs
                or isinstance(description.settings.get("layer"), str),
                **{name: name in options and name in description.settings for name in settings},
                **{
                    name: options[name].check(setting)
                    for name, setting in description.settings.items()
                    if name in options
                },
            }.items()
            if not agrees
        ),
        None,
    )
    if disagreement is not None:
        raise SptraceError(f"{path} is not what its description says ({disagreement}): compile it again")


def _has_shape(shape: Sequence[int | str | None] | None, wanted: Sequence[int | None]) -> bool:
    """Are these its sizes behind the batch? None stands for any."""
    return (
        shape is not None
        and len(shape) == len(wanted) + 1
        and all(size in (None, given) for size, given in zip(wanted, shape[1:], strict=True))
    )
