"""What an artifact says about itself: the JSON under the key ``sptrace`` of the ONNX metadata.

Torch-free: the compiler writes it, the runtime reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from sptrace.artifact import schema
from sptrace.artifact.links import LINKS, TAKEN_OFF
from sptrace.artifact.numbers import is_finite
from sptrace.artifact.softening import Softening
from sptrace.errors import SptraceError

METADATA_KEY = "sptrace"
FORMAT = 1

SPREAD = 4.0
"""How many times the doubt about hard gates an attribution may be away from the reference."""

LARGEST_DOUBT = 0.02
"""As far as gates in doubt may move an attribution that passes for right all the same."""


INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")
LARGEST_SIDE = 65535
"""Of a picture, in pixels."""
SMALLEST_STD = 1e-6
"""Of pixels in [0, 1], per channel: what is divided by less leaves the range of float32."""

PRECISIONS = ("fp32", "fp16")
INPUTS = ("float32", "uint8")


def check_input(kind: str, overlay: bool) -> None:
    """Refuse what is no kind of input, and an overlay of what is no photograph.

    Raises:
        SptraceError: `kind` is none of `INPUTS`, or an overlay is asked for and it is not "uint8".
    """
    if kind not in INPUTS:
        raise SptraceError(f"there is no input {kind!r}: use {' or '.join(INPUTS)}")
    if not isinstance(overlay, bool):
        raise SptraceError(f"overlay must be True or False, not {overlay!r}")
    if overlay and kind != "uint8":
        raise SptraceError("an overlay lies over the photograph: compile with input uint8 (--input uint8)")


def check_precision(precision: str) -> None:
    """Refuse what is no precision.

    Raises:
        SptraceError: it is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise SptraceError(f"there is no precision {precision!r}: use {' or '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes the network's input.

    Arguments:
        size: height and width of the input in pixels.
        resize: length in pixels to which the photograph's shorter side is scaled before the centre crop to `size`;
            None squeezes the whole photograph into `size`.
        interpolation: "bilinear", "bicubic", "lanczos" or "nearest", as Pillow does it (antialiased).
        input_range: the values of black and white in the `image` input of the artifact.
        mean, std: per channel, of pixels in [0, 1]; what the network was trained with. The artifact applies them
            itself. None: the network takes `image` as it is.
    """

    size: tuple[int, int]
    resize: int | None = None
    interpolation: str = "bilinear"
    input_range: tuple[float, float] = (-1.0, 1.0)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.input_range
        if not all(0 < side <= LARGEST_SIDE for side in self.size):
            raise SptraceError(f"the size is {list(self.size)}, not two numbers from 1 to {LARGEST_SIDE}")
        if self.resize is not None and not 0 < self.resize <= LARGEST_SIDE:
            raise SptraceError(f"resize is {self.resize}, not 1 to {LARGEST_SIDE}")
        if self.interpolation not in INTERPOLATIONS:
            raise SptraceError(
                f"interpolation is {self.interpolation!r}, none of {', '.join(INTERPOLATIONS)}"
            )
        if (self.mean is None) != (self.std is None):
            raise SptraceError("mean and std belong together: give both or neither")
        if not (is_finite(low) and is_finite(high) and low < high):
            raise SptraceError(f"the input's range is {low} to {high}")
        if not all(map(is_finite, self.mean or ())) or not all(
            is_finite(number) and number >= SMALLEST_STD for number in self.std or ()
        ):
            raise SptraceError(f"mean and std are {self.mean} and {self.std}")


@dataclass(frozen=True)
class GateCount:
    """How many nodes of one kind were softened alike.

    Arguments:
        kind, rule: names of `sptrace.artifact.softening.RULES`.
        tau: the temperature; "0.6std" or "2rms" for one relative to the scale of the gate's input; None if the rule
            has none.
        count: number of nodes.
    """

    kind: str
    rule: str
    tau: float | str | None
    count: int

    @property
    def temperature(self) -> str:
        """`tau` to be read by people."""
        if self.tau is None:
            return "-"
        return self.tau if isinstance(self.tau, str) else f"{self.tau:g}"

    def __post_init__(self) -> None:
        # Names of kinds and rules are not checked: artifacts outlive them.
        if self.count < 1:
            raise SptraceError(f"it has {self.count} gates of kind {self.kind!r}")


@dataclass(frozen=True)
class LayerScale:
    """What relative temperatures of a gate refer to, measured when compiling.

    Arguments:
        path: module path of the gate.
        scale: of its input over a picture, in the temperature's unit, averaged over the calibration pictures.
    """

    path: str
    scale: float


@dataclass(frozen=True)
class HardOp:
    """An op that is piecewise and stays hard, however gates are softened.

    Arguments:
        op: its name in ATen, for example "gt", "sort", "clamp".
        path: of the module that calls it; "" for the network itself.
    """

    op: str
    path: str

    def __str__(self) -> str:
        return f"{self.op} in {self.path or 'the network itself'}"


@dataclass(frozen=True)
class Measured:
    """How far the file is from the torch.fx program and from the eager reference, for one batch size.

    Of each picture apart, and the largest. Attributions: by the verification's measure. Logits: largest difference
    divided by the largest value of an ordinary class (see `verification.distances`).

    Arguments:
        batch: the batch size.
        attribution_to_module, logits_to_module: distance to the torch.fx program.
        attribution_to_eager, logits_to_eager: distance to the eager reference; logits_out are among the logits.
        doubt: how far the eager reference moves when hard gates whose input is 0 but for rounding are thrown to either
            side, by the same measure as attributions; 0 where no gate is hard, or where the distance is below the
            tolerance without that.
        activation_to_module, activation_to_eager: the same of a layer's activation, as of logits; None where the
            program has no such output.
    """

    batch: int
    attribution_to_module: float
    logits_to_module: float
    attribution_to_eager: float
    logits_to_eager: float
    doubt: float = 0.0
    activation_to_module: float | None = None
    activation_to_eager: float | None = None


@dataclass(frozen=True)
class Verification:
    """What the compiler measured before it let go of the file.

    Arguments:
        tolerance: what no error of an attribution may exceed, but for four times the doubt about hard gates.
        measure: of attributions: "maximum", the largest difference divided by the largest value; or "norm", the L2
            norm of the difference divided by the norm, where gates are hard and single pixels may jump.
        onnxruntime, torch: the versions that were compared.
        batches: one entry per batch size.
        settings: the run-time settings at which the program was verified, for example steps of an ascent.
        pixels: of artifacts that take uint8, how far what they make of photographs is from Pillow's, in levels of
            255.
        notes: what could not be verified, and why; one line each, and a warning when compiling.
        of_values: what no error of logits, or of a layer's activation, may exceed.
    """

    tolerance: float
    measure: str
    onnxruntime: str
    torch: str
    batches: tuple[Measured, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    pixels: float | None = None
    notes: tuple[str, ...] = ()
    of_values: float = 1e-4

    def allowed(self, batch: Measured) -> float:
        """What the errors of that batch's attributions were held to."""
        return self.tolerance + SPREAD * batch.doubt


@dataclass(frozen=True)
class Description:
    """Everything an artifact says about itself.

    `input` is one of `INPUTS`: what `image` is. "float32": [N, 3, height, width], prepared as `preprocessing` says.
    "uint8": [N, H, W, 3] of any size, which the artifact prepares so itself. `overlay`: is there such an output?
    `link` is one of `links.LINKS`: what makes probabilities of `logits`. `taken_off`: the softmax, log_softmax,
    sigmoid or logsigmoid that the network ended in, and that is not part of `logits`; None if nothing was taken off.
    """

    version: str
    program: str
    network: str
    weights: str
    parameters: int
    classes: int
    preprocessing: Preprocessing
    softening: Softening
    gates: tuple[GateCount, ...]
    scales: tuple[LayerScale, ...] = ()
    left_hard: tuple[HardOp, ...] = ()
    labels: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    verification: Verification | None = None
    precision: str = "fp32"
    input: str = "float32"
    overlay: bool = False
    link: str = "softmax"
    taken_off: str | None = None
    format: int = field(default=FORMAT)

    def __post_init__(self) -> None:
        if self.classes < 1 or self.parameters < 0 or self.format < 1:
            raise SptraceError(
                f"classes is {self.classes}, parameters {self.parameters}, format {self.format}"
            )
        if self.precision not in PRECISIONS or self.input not in INPUTS:
            raise SptraceError(f"precision is {self.precision!r}, input {self.input!r}")
        if self.link not in LINKS or (
            self.taken_off is not None and TAKEN_OFF.get(self.taken_off) != self.link
        ):
            raise SptraceError(f"link is {self.link!r}, taken_off {self.taken_off!r}")

    def as_dict(self) -> dict[str, Any]:
        """The description in types that JSON knows."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    def to_json(self) -> str:
        """The description as one line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Description:
        """Read a description back.

        Raises:
            SptraceError: the text was written by a newer sptrace, or is damaged.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            newer = data["format"] > FORMAT
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(error) from error
        if newer:
            raise SptraceError(
                f"the artifact was written by sptrace {str(data.get('version'))[:40]}, "
                "whose format this sptrace does not know: upgrade sptrace"
            )
        try:
            return schema.read(Description, data)
        except (SptraceError, ValueError) as error:
            raise _damaged(error) from error


def _damaged(error: Exception) -> SptraceError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return SptraceError(f"the artifact's description is damaged ({reason}): compile it again")


def _plain(field_: Any) -> Any:
    if isinstance(field_, Softening):
        return field_.as_dict()
    if isinstance(field_, tuple):
        return [_plain(part) for part in field_]
    return asdict(field_) if is_dataclass(field_) and not isinstance(field_, type) else field_
