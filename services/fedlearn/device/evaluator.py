"""The evaluator: scores each version on a test set that no device holds. It runs on the device's image and code."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fedlearn.adapters.http import ServiceClient, TokenFile, persist, spawn
from fedlearn.adapters.listeners import listen
from fedlearn.adapters.web import make_app, serve
from fedlearn.config import EvaluatorSettings
from fedlearn.core.errors import Code, FedlearnError, Outage
from fedlearn.core.ids import TaskId
from fedlearn.core.learning import Examples
from fedlearn.data.datasets import CACHE, find
from fedlearn.data.shards import as_examples
from fedlearn.device.learners import learner_factory
from fedlearn.device.peers import ServerClient
from fedlearn.device.workshop import Workshop
from fedlearn.protocol.views import Evaluation, EvaluationJob
from fedlearn.telemetry.logs import about, log, set_up_logs
from fedlearn.telemetry.metrics import evaluator as metrics

_log = log(__name__)
_WAIT_SECONDS, _FIRST_WAIT_SECONDS = 30.0, 1.0
_AFTER_FAILURE_SECONDS = 2.0
_LASTING = frozenset({Code.PLAN_INVALID, Code.MODEL_MISMATCH, Code.SHARD_INVALID, Code.NOT_FOUND})  # faults of a version itself


class Evaluator:
    """Asks for versions of tasks on one dataset, and answers with figures."""

    def __init__(self, dataset: str, test: Examples, workshop: Workshop) -> None:
        self._dataset, self._test, self._workshop = dataset, test, workshop
        self.connected = False

    async def run(self) -> None:
        """Until cancelled; a version that can't be scored because something is away is asked for again."""
        while True:
            try:
                # the first answer comes soon, since it is what readiness waits for
                wait_seconds = _WAIT_SECONDS if self.connected else _FIRST_WAIT_SECONDS
                job = await self._workshop.server.next_evaluation(self._dataset, wait_seconds)
                self.connected = True
                if job is not None:
                    with about(task=job.task, version=job.model.version):
                        await self._score(job)
            except FedlearnError as error:
                self.connected = not isinstance(error, Outage)
                _log.warning("evaluation failed", code=error.code, detail=error.detail)
                await asyncio.sleep(_AFTER_FAILURE_SECONDS)
            except Exception:
                _log.exception("evaluation failed in a way that was not foreseen")
                await asyncio.sleep(_AFTER_FAILURE_SECONDS)

    async def _score(self, job: EvaluationJob) -> None:
        try:
            figures = await self._figures(job)
        except FedlearnError as error:
            if error.code not in _LASTING:
                raise
            _log.error("the version can't be scored: it gets no figures", code=error.code, detail=error.detail)
            figures = {}
        except Exception:  # anything: Keras and TensorFlow fail in many ways
            _log.exception("the version can't be scored: it gets no figures, so that those behind it get theirs")
            figures = {}
        # the loss of a model that has diverged is no number, and JSON has none for it
        evaluation = Evaluation(metrics={name: value for name, value in figures.items() if math.isfinite(value)})
        await persist(lambda: self._workshop.server.evaluate(TaskId(job.task), job.model.version, evaluation))
        _log.info("scored", **figures)

    async def _figures(self, job: EvaluationJob) -> Mapping[str, float]:
        workshop, loop = self._workshop, asyncio.get_running_loop()
        with metrics.FAILURES.count_exceptions(), metrics.SCORING_SECONDS.time():
            tools = await workshop.tools(job.plan_digest)
            # the version itself, not the copy that devices are given
            weights = await workshop.weights(TaskId(job.task), job.model, job.model_url, tools.plan, "float32")
            return await loop.run_in_executor(workshop.compute, tools.learner.evaluate, weights, self._test)


def build_app(settings: EvaluatorSettings) -> FastAPI:
    """The evaluator's app; it scores while it runs."""
    make_learner, _ = learner_factory(settings.learner)
    test = as_examples(find(settings.dataset, directory=settings.data_dir, cache=CACHE).test)
    client = ServiceClient(
        settings.server_url, "server", token=TokenFile(settings.server_token_file), unreachable=Code.SERVER_UNREACHABLE
    )
    compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
    workshop = Workshop(server=ServerClient(client), aggregator=None, identity=None, make_learner=make_learner, compute=compute)
    evaluator = Evaluator(settings.dataset, test, workshop)

    async def ready() -> None:
        if not evaluator.connected:
            raise Outage(Code.SERVER_UNREACHABLE, "The server did not answer last time.")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        running: set[asyncio.Task[None]] = set()
        async with client:
            spawn(evaluator.run(), running)
            yield
            for task in running:
                task.cancel()
        compute.shutdown(wait=False, cancel_futures=True)

    return make_app(
        "fedlearn evaluator",
        "Scores each version on the test set.",
        lifespan=lifespan,
        ready=ready,
        unready=Code.SERVER_UNREACHABLE,
        limits=settings.limits,
    )


def main(settings: EvaluatorSettings) -> None:
    """Score versions until SIGTERM.

    Raises:
        SetupError: `data_missing`, `data_corrupt`, `port_busy`, `setting_invalid`, `service_failed`.
    """
    set_up_logs("evaluator", settings.log_level)
    listener = listen(settings.host, settings.port)
    serve(build_app(settings), listener)
