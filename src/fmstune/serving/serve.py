"""`fmstune serve` in the runner: load the models, listen, and end in order."""

import logging
import os
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from fmstune.config.after_training.serving import API_KEY, LOCAL_HOSTS, Serving, ServingEngine
from fmstune.errors import Preempted, UserError
from fmstune.launch import parent
from fmstune.serving import vllm_command
from fmstune.serving.app import Service, build_app
from fmstune.serving.engine import Engine
from fmstune.serving.questions import Limits
from fmstune.serving.served_models import load_served

TOGETHER = 8
"""Greedy requests of one batch, where batches do not change answers."""


class _Server(uvicorn.Server):
    """Says when it listens, and when it has ended."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens, self.ended = threading.Event(), threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve to the end."""
        try:
            super().run(sockets=sockets)
        finally:
            self.listens.set()
            self.ended.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and let others know."""
        await super().startup(sockets=sockets)
        self.listens.set()


def serve_model(request: Serving) -> int:
    """Serve until a signal ends it; raises UserError where the model cannot be loaded or the port is taken."""
    if request.engine is ServingEngine.vllm:
        return vllm_command.serve_by_vllm(request)
    # before the weights are read: another server may have the port
    with _listen(request.host, request.port) as listening:
        return _serve_at(listening, request)


def _serve_at(listening: socket.socket, request: Serving) -> int:
    served = load_served(request)
    size = request.batch_size or (TOGETHER if served.exact_batches else 1)
    if size > 1 and not served.exact_batches:
        text = "in this dtype a request may be answered differently in a batch; leave --batch_size out to avoid it"
        print(f"fmstune: note: {text}", file=sys.stderr)
    engine = Engine(served.models, served.asker.tokenizer, batch_size=size, max_waiting=request.max_waiting)
    service = Service(served, engine, Limits(request.max_new_tokens), _title(request.model))
    key = os.environ.get(API_KEY)
    app = build_app(service, key=key, local=request.host in LOCAL_HOSTS)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=request.grace,
    )
    server = _Server(config)
    # the main thread is the one that signals reach
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
    thread.start()
    try:
        server.listens.wait()
        for line in _told(request, listening, list(served.models), served.asker.name, key):
            print(line, flush=True)
        # not the thread's own `join`: interrupted, it takes the thread for ended (python/cpython#90882)
        server.ended.wait()
    except (KeyboardInterrupt, Preempted):
        parent.interrupt_no_more()
        print(f"fmstune: running requests have {request.grace} s to end", file=sys.stderr, flush=True)
        raise
    finally:
        service.closing = True
        server.should_exit = True
        thread.join()
        engine.close(timeout=5)
    return 1


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at this address; raises UserError where that cannot be."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as err:
        raise UserError(
            "--host", f": {host} cannot be found ({err.strerror}); give an address of this machine"
        ) from err
    found = socket.socket(kind, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as err:
        found.close()
        text = f": cannot listen at {host}:{port} ({err.strerror}); choose another, or 0 for a free one"
        raise UserError("--port", text) from err
    return found


def _title(model: str) -> str:
    """The name of the run or of the model."""
    path = Path(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _told(request: Serving, listening: socket.socket, models: list[str], format: str, key: str | None) -> list[str]:
    """What the terminal says when the server listens."""
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return [
        f"serving {' and '.join(models)} of {request.model} at {address}",
        f"  page {address}/, OpenAI's API {address}/v1, asked in the format {format}",
        f"  clients send the key of {API_KEY}" if key is not None else f"  no key is needed ({API_KEY} sets one)",
    ]
