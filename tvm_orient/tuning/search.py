"""MetaSchedule's evolutionary search with an xgboost cost model, over the named knobs of a template.

A ScheduleFn samples every knob as a categorical and writes it on the workload as an annotation; a mutator moves one knob at a
time; a postprocessor drops what the template calls invalid; the cost model sees the knobs themselves. What a candidate's
kernel is, only the callback that measures it knows.
"""

from __future__ import annotations

import contextlib
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..toolchain.tvm import load_tvm, stub_tensor_intrin

load_tvm()
stub_tensor_intrin()

import tvm.s_tir.meta_schedule as ms  # noqa: E402  (after the guard and the stub)
from tvm import te  # noqa: E402
from tvm.ir.utils import derived_object  # noqa: E402
from tvm.s_tir import Schedule  # noqa: E402

Decisions = dict[str, int]
_PREFIX = "tvm_orient."


class Stopped(Exception):
    """Ends a search early: a callback raises it, and it comes out of `search`."""


@dataclass(frozen=True)
class Space:
    """The candidates of one template for one problem."""

    knobs: Mapping[str, Sequence[int]]  #: values of each knob, in ascending order
    valid: Callable[[Decisions], bool]  #: whether the template can make a kernel of these decisions
    features: Callable[[Decisions], Sequence[float]]  #: what the cost model sees of a candidate


def _workload() -> Any:
    x = te.placeholder((1,), name="x")
    return te.create_prim_func([x, te.compute((1,), lambda i: x[i], name="y")]).with_attr("global_symbol", "main")


def decisions_of(sch: Any) -> Decisions:
    """Returns the knobs that a sampled schedule carries."""
    notes = sch.get(sch.get_sblock("y")).annotations
    return {name.removeprefix(_PREFIX): int(value) for name, value in notes.items() if name.startswith(_PREFIX)}


@derived_object
class _Valid(ms.postproc.PyPostproc):  # type: ignore[misc]
    """Drops candidates that the template calls invalid."""

    def __init__(self, valid: Callable[[Decisions], bool]) -> None:
        super().__init__()
        self.valid = valid

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, sch: Any) -> bool:
        return self.valid(decisions_of(sch))

    def clone(self) -> Any:
        return _Valid(self.valid)


@derived_object
class _MoveKnob(ms.mutator.PyMutator):  # type: ignore[misc]
    """Moves one knob of a candidate to a neighbouring value."""

    def __init__(self, random_state: random.Random) -> None:
        super().__init__()
        self.random = random_state

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: Any, _: Any) -> Any:
        movable = [(inst, int(chosen), len(inst.attrs[0])) for inst, chosen in trace.decisions.items() if len(inst.attrs[0]) > 1]
        if not movable:
            return None
        inst, chosen, count = self.random.choice(movable)
        near = [i for i in (chosen - 1, chosen + 1) if 0 <= i < count]  # knobs are ordered, so a neighbour is a small step
        return trace.with_decision(inst, self.random.choice(near), True)

    def clone(self) -> Any:
        return _MoveKnob(self.random)


@derived_object
class _KnobFeatures(ms.feature_extractor.PyFeatureExtractor):  # type: ignore[misc]
    """Shows the cost model the knobs of a candidate."""

    def __init__(self, features: Callable[[Decisions], Sequence[float]]) -> None:
        super().__init__()
        self.features = features

    def extract_from(self, context: Any, candidates: Any) -> list[Any]:
        return [load_tvm().runtime.tensor(np.asarray([self.features(decisions_of(c.sch))], dtype="float32")) for c in candidates]


@derived_object
class _Handover(ms.builder.PyBuilder):  # type: ignore[misc]
    """Hands candidates on to the runner: an artifact is the text of its decisions, in a folder of its own."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def build(self, inputs: Any) -> list[Any]:
        results = []
        for item in inputs:
            path = tempfile.mkdtemp(dir=self.folder) + "/decisions"
            with open(path, "w") as file:
                file.write(repr(decisions_of(Schedule(item.mod))))
            results.append(ms.builder.BuilderResult(path, None))
        return results


@derived_object
class _Done(ms.runner.PyRunnerFuture):  # type: ignore[misc]
    """Holds a result that is there already: seconds, or None for a failure."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        self.seconds = seconds

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return ms.runner.RunnerResult([self.seconds], None) if self.seconds is not None else ms.runner.RunnerResult(None, "failed")


@derived_object
class _Runner(ms.runner.PyRunner):  # type: ignore[misc]
    """Hands a round of candidates to the callbacks, first all of them to `ahead`, then one after the other to `measure`."""

    def __init__(self, measure: Callable[[Decisions], float | None], ahead: Callable[[list[Decisions]], None]) -> None:
        super().__init__()
        self.measure, self.ahead = measure, ahead

    def run(self, inputs: Any) -> list[Any]:
        import ast
        from pathlib import Path

        proposed = [ast.literal_eval(Path(str(item.artifact_path)).read_text()) for item in inputs]
        self.ahead(proposed)
        return [_Done(self.measure(decisions)) for decisions in proposed]


def search(
    space: Space,
    measure: Callable[[Decisions], float | None],
    *,
    target: Any,
    trials: int,
    round_size: int,
    seed: int,
    ahead: Callable[[list[Decisions]], None] = lambda proposed: None,
) -> None:
    """Proposes decisions to `measure` until it has been asked `trials` times.

    Args:
        space: what is searched.
        measure: returns the seconds of a candidate, None where it fails; may raise Stopped.
        target: TVM's target.
        trials: candidates to be measured, at most.
        round_size: candidates between two fits of the cost model.
        seed: a search with the same seed and the same answers proposes the same candidates.
        ahead: is told each round of candidates before the first of them is measured; may raise Stopped.

    Raises:
        Stopped: a callback raised it, or Ctrl-C was pressed.
    """
    stopped: list[bool] = []
    runner = _Runner(_noting(measure, stopped), _noting(ahead, stopped))
    model = ms.cost_model.XGBModel(extractor=_KnobFeatures(space.features), num_warmup_samples=round_size, num_tuning_cores=1)
    with tempfile.TemporaryDirectory() as work, _numpy_seeded(seed):
        context = ms.TuneContext(
            load_tvm().IRModule({"main": _workload()}), target=target, space_generator=_generator(space, seed), search_strategy=_strategy(round_size),
            rand_state=seed + 1, num_threads=1, logger=logging.getLogger("tvm_orient.tuning.search"),
        )  # fmt: skip
        try:
            ms.tune_tasks(
                tasks=[context], task_weights=[1.0], work_dir=work, max_trials_global=trials, num_trials_per_iter=round_size, builder=_Handover(work),
                runner=runner, database="memory", cost_model=model, task_scheduler="round-robin",
                measure_callbacks=[ms.measure_callback.AddToDatabase(), ms.measure_callback.RemoveBuildArtifact(), ms.measure_callback.UpdateCostModel()],
            )  # fmt: skip
        except BaseException as problem:
            # the boundary to C++ turns our exceptions into its own
            if stopped or isinstance(problem, KeyboardInterrupt) or "KeyboardInterrupt" in repr(problem):
                raise Stopped from problem
            raise


def _generator(space: Space, seed: int) -> Any:
    """Returns MetaSchedule's generator of candidates: each knob is sampled and written on the workload, and moved by the mutator."""

    def sampled(sch: Any) -> None:
        block = sch.get_sblock("y")
        for name, values in space.knobs.items():
            chosen = sch.sample_categorical(list(values), [1.0 / len(values)] * len(values))
            sch.annotate(block, _PREFIX + name, chosen)

    return ms.space_generator.ScheduleFn(sampled, sch_rules=[], postprocs=[_Valid(space.valid)], mutator_probs={_MoveKnob(random.Random(seed)): 1.0})


def _strategy(round_size: int) -> Any:
    return ms.search_strategy.EvolutionarySearch(
        population_size=64,
        init_measured_ratio=0.2,
        init_min_unmeasured=round_size,
        genetic_num_iters=2,
        genetic_mutate_prob=0.85,
        genetic_max_fail_count=10,
        eps_greedy=0.1,
    )


def _noting(function: Callable[[Any], Any], stopped: list[bool]) -> Callable[[Any], Any]:
    """Returns a callback that notes what ends the search before it goes through C++, which makes another exception of it."""

    def call(given: Any) -> Any:
        try:
            return function(given)
        except (Stopped, KeyboardInterrupt):
            stopped.append(True)
            raise

    return call


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which the model draws from before it is warm, and restores it: a run must repeat, or it could not resume."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
