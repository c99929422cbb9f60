"""Every refusal and failure the service answers with, and their one shape, RFC 9457. No web framework here.

ServiceError
├── BadRequest              400 bad_request
├── Unauthorized            401 unauthorized            WWW-Authenticate
├── NotFound                404 not_found
├── MethodNotAllowed        405 method_not_allowed      Allow, given by the raiser
├── NotAcceptable           406 not_acceptable
├── RequestTimeout          408 request_timeout         Connection: close
├── BodyTooLarge            413 body_too_large
├── ImageTooLarge           413 image_too_large
├── TooManyImages           413 too_many_images
├── UnsupportedMediaType    415 unsupported_media_type
├── BadImage                422 bad_image
├── BadParameter            422 bad_parameter
├── InternalError           500 internal_error
├── Overloaded              503 overloaded              Retry-After
├── Draining                503 draining                Retry-After
├── NotReady                503 not_ready               Retry-After
└── DeadlineExceeded        504 deadline_exceeded

The text is ours: what a decoder, a driver or an exception said belongs in the log.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
RETRY_SOON: Mapping[str, str] = MappingProxyType(
    {"Retry-After": "1"}
)  # whole seconds; a raiser who knows better says so


class ServiceError(Exception):
    """An answer that is not 200. `detail` is for the caller, `headers` go out with it.

    Without a `detail` the class's own sentence stands. `headers` given here join the class's defaults and win.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]
    sentence: ClassVar[str]
    default_headers: ClassVar[Mapping[str, str]] = NO_HEADERS

    def __init__(self, detail: str | None = None, *, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self.detail: str = self.sentence if detail is None else detail
        self.headers: dict[str, str] = {**self.default_headers, **headers}
        super().__init__(self.detail)


class BadRequest(ServiceError):
    status, code, title = 400, "bad_request", "Bad request"
    sentence = "The request could not be read."


class Unauthorized(ServiceError):
    status, code, title = 401, "unauthorized", "Unauthorized"
    sentence = "This service wants a key: Authorization: Bearer <key>."
    default_headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class NotFound(ServiceError):
    status, code, title = 404, "not_found", "Not found"
    sentence = "There is nothing at this address."


class MethodNotAllowed(ServiceError):
    status, code, title = 405, "method_not_allowed", "Method not allowed"
    sentence = "This address does not answer this method."


class NotAcceptable(ServiceError):
    status, code, title = 406, "not_acceptable", "Not acceptable"
    sentence = "None of the formats asked for can be produced."


class RequestTimeout(ServiceError):
    status, code, title = 408, "request_timeout", "Request timeout"
    sentence = "The body arrived too slowly."
    default_headers = MappingProxyType({"Connection": "close"})  # RFC 9110, 15.5.9


class BodyTooLarge(ServiceError):
    status, code, title = 413, "body_too_large", "Body too large"
    sentence = "The body has more bytes than are accepted."


class ImageTooLarge(ServiceError):
    status, code, title = 413, "image_too_large", "Image too large"
    sentence = "The image has more pixels than are accepted."


class TooManyImages(ServiceError):
    status, code, title = 413, "too_many_images", "Too many images"
    sentence = "The request holds more images than are accepted."


class UnsupportedMediaType(ServiceError):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"
    sentence = "This kind of content is not accepted."


class BadImage(ServiceError):
    status, code, title = 422, "bad_image", "Bad image"
    sentence = "The image is damaged or truncated."


class BadParameter(ServiceError):
    status, code, title = 422, "bad_parameter", "Bad parameter"
    sentence = "A parameter is out of range."


class InternalError(ServiceError):
    status, code, title = 500, "internal_error", "Internal error"
    sentence = "The service failed; the log knows more under this request id."


class Overloaded(ServiceError):
    status, code, title = 503, "overloaded", "Overloaded"
    sentence = "The service is at capacity."
    default_headers = RETRY_SOON


class Draining(ServiceError):
    status, code, title = 503, "draining", "Draining"
    sentence = "The service is shutting down and takes no new work."
    default_headers = RETRY_SOON


class NotReady(ServiceError):
    status, code, title = 503, "not_ready", "Not ready"
    sentence = "The service is not ready to work."
    default_headers = RETRY_SOON


class DeadlineExceeded(ServiceError):
    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"
    sentence = "The deadline passed before the work was done; the work is dropped."


ERRORS: tuple[type[ServiceError], ...] = (
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    RequestTimeout,
    BodyTooLarge,
    ImageTooLarge,
    TooManyImages,
    UnsupportedMediaType,
    BadImage,
    BadParameter,
    InternalError,
    Overloaded,
    Draining,
    NotReady,
    DeadlineExceeded,
)


def of_code(code: str) -> type[ServiceError]:
    """The class of an error's code."""
    return next(kind for kind in ERRORS if kind.code == code)


def problem(error: ServiceError, request_id: str, path: str = "") -> dict[str, str | int]:
    """The members of an `application/problem+json` body, in the contract's order; `type` is a name, not an address.
    Below `/v2` there is one more, which the clients of that protocol read."""
    members: dict[str, str | int] = {
        "type": f"urn:nam-serve:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    return {**members, "error": error.detail} if path == "/v2" or path.startswith("/v2/") else members
