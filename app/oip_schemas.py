"""What the Open Inference Protocol v2 calls the members of its requests and answers.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. Members that are not known
here are ignored: clients send their own. One that is null is absent.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from app.errors import BadRequest

Count = Annotated[int, Field(ge=0)]
# Checked where it is read: a list of a million numbers would be copied by its check.
Data = Annotated[Any, WithJsonSchema({"type": "array", "items": {}})]


class _Sent(BaseModel):
    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, sent: Any) -> Any:
        return {name: value for name, value in sent.items() if value is not None} if isinstance(sent, dict) else sent


class InputParameters(_Sent):
    """``binary_data_size``: how many bytes of the body, behind the JSON, are this tensor."""

    binary_data_size: Count | None = None


class RequestInput(_Sent):
    """``image``, BYTES [n], or ``pixels``, UINT8 [n, S, S, 3], RGB. ``data``: flat or nested, row by row, encoded
    images in base64; none where the tensor is binary."""

    name: str
    datatype: str
    shape: list[Count]
    parameters: InputParameters = InputParameters()
    data: Data = None


class OutputParameters(_Sent):
    """``binary_data``: as raw bytes behind the JSON; ``classification``: instead of probabilities so many labels, best
    first, as BYTES: ``probability:index:label``."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1)] | None = None


class RequestedOutput(_Sent):
    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Sent):
    """``binary_data_output``: all outputs as raw bytes, but those that say otherwise."""

    binary_data_output: bool = False


class InferRequest(_Sent):
    """``outputs``: all there are, where none is named. No network has as many as may be."""

    id: str | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=1000)] = []


class ResponseOutput(BaseModel):
    """``parameters``: ``binary_data_size`` where the tensor is behind the JSON; else ``data`` has it, flat."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferAnswer(BaseModel):
    """``parameters``: ``notes``, what limits the attention, where there is something to say."""

    model_name: str
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[ResponseOutput]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """-1 in a shape: any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """``versions``: those that a path may name; none, there is one model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


def infer_request(sent: Any) -> InferRequest:
    """Raises BadRequest."""
    try:
        return InferRequest.model_validate(sent)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "The request"
        what = "Input should be an object" if first["type"] == "model_type" else first["msg"]
        raise BadRequest(f"{where}: {what}.") from None


def request_schema() -> dict[str, Any]:
    """Of an inference request, for the OpenAPI document, in one piece: FastAPI does not read these bodies."""
    schema = InferRequest.model_json_schema()
    named = schema.pop("$defs")
    return {key: _inlined(value, named) for key, value in schema.items()}


def _inlined(node: Any, named: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(member, named) for member in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(named[node["$ref"].rpartition("/")[2]], named)
    return {key: _inlined(value, named) for key, value in node.items()}
