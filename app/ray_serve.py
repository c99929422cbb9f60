"""Ray Serve: the same application on more than one machine. Ray's proxies speak HTTP and deal requests out to replicas;
a replica is the whole service in one process of Ray's, with its own queue and its own engine.

    serve deploy app.ray_serve:build replicas=2 gpus=1
    serve deploy app.ray_serve:build replicas=2 gpus=1 weights=/weights/new.safetensors    # one replica after the other

Settings are those of ``NAM_*`` where ``build`` runs: on a machine of the cluster, in the environment of its
``ray start`` and of ``serve deploy --runtime-env-json '{"env_vars": {...}}'``; with ``serve run``, in the shell's. All
replicas get them from there. A weights file has to lie at that path on every machine. Arguments say what Ray alone has
to know. To change what is served, ``serve deploy``: ``serve run`` ends the whole service where a change fails.

What changes behind Ray's proxy:

* The connections are Ray's: ``protocol.py``, ``server.py`` and ``workers.py`` are not used, ``NAM_HOST``, ``NAM_PORT``
  and ``NAM_WORKERS`` say nothing, and nobody who reads no answer is cut. All requests go through the framework.
* Whatever reaches a replica is admitted, timed out and refused as ever, in the contract's shape. What never does is
  answered by Ray in plain text: 500 where a replica died over a request (send it again), 503 where none can take it;
  ``/-/healthz`` and ``/-/routes`` are Ray's own.
* A deadline begins at the replica. ``X-Request-ID`` is Ray's where the caller sent none; a bad one is answered twice,
  as Ray repeats it and as ours, which the log has.
* ``/readyz``, ``/metrics`` and the limits of admission are one replica's.
* Between proxy and replica Ray pickles requests and answers, and settings, keys among them, on their way to a replica:
  who can speak to a cluster's ports can run code in it. They belong on a network of their own.
"""

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.guards import by_name, check_ready
from app.lane_process import open_run
from app.main import create_app
from app.services import OpenRun, lanes_here
from app.settings import Settings
from nam.files import SHIPPED_SHA256, verified

# Ray's look at whether requests are left, every two seconds, then our last batch and the end of the lanes.
ENDING_S = 5.0
CHECK_PERIOD_S = 1.0


class Arguments(BaseModel):
    """What follows ``app.ray_serve:build``, as ``name=value``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = Field(default=None, description="A weights file, or the name of shipped weights.")
    replicas: int = Field(default=1, ge=1, description="Replicas at the least.")
    max_replicas: int = Field(default=0, ge=0, description="Replicas at the most; 0: there are never more.")
    target_ongoing_requests: float = Field(
        default=32.0, gt=0, description="Requests under way at a replica above which there is one more, on average."
    )
    gpus: float = Field(default=0.0, ge=0, description="GPUs of a replica; 0.5: two share one; 0: it has none.")
    cpus: float = Field(default=1.0, gt=0, description="CPU cores of a replica.")


class Replica:
    """One copy of the service. Ray calls the methods, by these names."""

    def __init__(self, settings: Settings, open_run: OpenRun = open_run) -> None:
        logs.configure(settings.log_level, settings.log_format)
        self._service = BehindProxy(create_app(settings, lanes_here(open_run)))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Answers HTTP; Ray runs its lifespan: the replica is ready once it is warm."""
        return self._service

    def check_health(self) -> None:
        """Raises where ``/readyz`` says no: Ray asks every CHECK_PERIOD_S and replaces who fails three times."""
        check_ready(self._service.state["services"])


class BehindProxy:
    """What an ASGI server does and Ray does not: each request gets the state that the lifespan yielded. And what Ray
    does already: it adds the request's id to the answer, so ours is left out where it is the same."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.state = scope["state"]
            await self.app(scope, receive, send)
            return
        ours = (b"x-request-id", by_name(scope["headers"]).get(b"x-request-id"))

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [header for header in message["headers"] if tuple(header) != ours]}
            await send(message)

        await self.app({**scope, "state": dict(self.state)}, receive, send_once)


def build(arguments: Arguments) -> Application:
    """The application that Ray deploys. Raises WeightsError before anything is: what is served goes on."""
    settings = Settings() if arguments.weights is None else Settings(weights=arguments.weights)
    return deployment(arguments, settings).bind(within(arguments, pinned(settings)))


def pinned(settings: Settings) -> Settings:
    """These weights and no others: a machine that has another file there starts no replica, and another file at the
    same place is other weights. Raises WeightsError."""
    file, sha256 = verified(settings.weights, settings.weights_sha256)
    weights = settings.weights if settings.weights in SHIPPED_SHA256 else str(file.resolve())
    return settings.model_copy(update={"weights": weights, "weights_sha256": sha256})


def within(arguments: Arguments, settings: Settings) -> Settings:
    """What is left to the machine's size stays within the replica's share of it."""
    cores = max(1, round(arguments.cpus))
    share: dict[str, Any] = {"device": "cuda" if arguments.gpus else "cpu", "decoders": cores}
    if not arguments.gpus:
        share |= {"lanes": cores, "threads": 1}
    given = settings.model_fields_set
    return settings.model_copy(update={name: value for name, value in share.items() if name not in given})


def deployment(arguments: Arguments, settings: Settings) -> Deployment:
    """How Ray runs replicas. One gets as many requests as it admits, and so refuses none that another has room for; as
    many again wait in a proxy, and what is more is refused there."""
    options: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.max_replicas:
        options = {"autoscaling_config": _autoscaling(arguments)}
    made = serve.deployment(
        serve.ingress()(Replica),
        name="nam",
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_requests,
        backpressure_config=BackpressureConfig(retry_after_s=1),
        health_check_period_s=CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=settings.drain_ms / 1000 + ENDING_S,
        **options,
    )
    return cast(Deployment, made)


def _autoscaling(arguments: Arguments) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=arguments.replicas,
        max_replicas=arguments.max_replicas,
        target_ongoing_requests=arguments.target_ongoing_requests,
    )
