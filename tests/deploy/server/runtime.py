"""How a server of the test runs a model of the repository: onnxruntime alone, in the server's own environment."""

from pathlib import Path

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        (model,) = Path(self.settings.parameters.uri).glob("*/model.onnx")
        self.session = onnxruntime.InferenceSession(model)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {item.name: NumpyCodec.decode_input(item) for item in payload.inputs}
        feeds["target"] = feeds["target"].reshape(-1)  # as config.pbtxt says
        names = [item.name for item in self.session.get_outputs()]
        answers = zip(names, self.session.run(names, feeds), strict=True)
        outputs = [NumpyCodec.encode_output(name, answer) for name, answer in answers]
        return InferenceResponse(model_name=self.name, outputs=outputs)
