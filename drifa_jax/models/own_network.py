"""A network of one's own as a branch: DRIFA steps in after the sub-modules that are named.

The module's own `__call__` runs as its author wrote it. Stage k is what it computes between the
outputs of two named sub-modules:

    images ─ ... ─ layer1 ─┬─ ... ─ layer2 ─┬─ ...
                        stage 0          stage 1

To run stage k, the call starts anew; sub-modules that were passed before are not run but answer
with their fused features, and the call is left once the next named sub-module has answered. What
was computed on the way to known answers is needed by nothing, so `jax.jit` drops it, and batch
statistics that it would have moved are put back.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.backbones.contract import Backbone, Stage
from drifa_jax.typing import FeatureMap, Images, Present

Passed = tuple[jax.Array, ...]
Reached = Callable[[str, Callable[[], Any]], Any]


class StageError(ValueError):
    """A module whose stages cannot be named, or not so."""


class OwnNetwork(nnx.Module):
    """Any module as a `TokenBackbone`, whose stages are some of its sub-modules.

    Args:
      module: called as `module(images)` with `[b, *space, c]`, or with `train=` too if it takes it.
        It is copied, weights included.
      stages: names of sub-modules in the order in which the call reaches them, dots between
        levels: `["layer1", "blocks.3"]`. Each answers with an array `[b, ..., channels]` and is
        called once. What follows the last, such as a head, is left out.
      shape: of one image, `(*space, c)`; any that the module can read. Stages are measured on it.

    Its dropout layers are switched off: Monte Carlo dropout follows the stages, drawn by key. Its
    batch norms follow `train`, and see an absent image as zeros.

    Raises:
      StageError: for stages that it does not have, does not reach, or reaches in another order or
        twice, that answer with something else than an array, and for state other than parameters
        and batch statistics; it lists the sub-modules.
    """

    def __init__(self, module: nnx.Module, stages: Sequence[str], shape: Sequence[int]):
        if not isinstance(module, nnx.Module):
            raise StageError(f"A branch must be a flax.nnx.Module, not {type(module).__name__}.")
        self.names = (stages,) if isinstance(stages, str) else tuple(stages)
        if not self.names:
            raise StageError(f"Name the stages of {type(module).__name__}. {_listed(module)}")
        self.module = _prepared(module)
        self.takes_train = "train" in inspect.signature(type(module).__call__).parameters
        self.plan = self._measured(tuple(shape))

    def stem_with_tokens(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[Images, Passed]:
        """The images, and nothing passed yet: the first stage begins with the pixels."""
        return images, ()

    def stage_with_tokens(
        self,
        number: int,
        x: FeatureMap,
        tokens: Passed,
        *,
        train: bool,
        present: Present | None = None,
    ) -> tuple[FeatureMap, Passed]:
        """Features after the named sub-module `number`, and all that the call passed before it.

        Args:
          number: counted from 0.
          x: the images, or the fused features of the stage before.
          tokens: the images and the fused features of all stages before that.
          train: whether batch norm uses and remembers this batch's statistics.
          present: not read.
        """
        passed = (*tokens, x)
        images, *answers = passed
        return self._until(number, images, answers, train), passed

    def _until(self, number, images, answers, train) -> FeatureMap:
        self.module.set_attributes(use_running_average=not train, raise_if_not_found=False)
        before = nnx.to_pure_dict(nnx.state(self.module, nnx.BatchStat))

        met = 0

        def reached(name: str, run: Callable[[], Any]) -> Any:
            nonlocal met
            if name != self.names[met]:
                again = "twice" if name in self.names[:met] else f"before {self.names[met]!r}"
                raise StageError(
                    f"The call reaches {name!r} {again}; name sub-modules that are called once, in "
                    "the order of their calls."
                )
            met += 1
            if met > len(answers):
                raise _Answer(run())
            if met == len(answers):
                nnx.update(self.module, before)
            return answers[met - 1]

        options = {"train": train} if self.takes_train else {}
        try:
            with _watched(self.module, self.names, reached):
                self.module(images, **options)
        except _Answer as answer:
            found = answer.value
        else:
            raise StageError(
                f"The call ended before it reached {self.names[met]!r}, so that it is no stage. "
                f"{_listed(self.module)}"
            )
        if not isinstance(found, jax.Array) or found.ndim < 2:
            raise StageError(
                f"{self.names[number]!r} answers with {_kind(found)}; a stage answers with one "
                "array [batch, ..., channels]."
            )
        return found

    def _measured(self, shape: tuple[int, ...]) -> tuple[Stage, ...]:
        """The stages as they answer to one image of zeros; nothing is computed."""
        graph, state = nnx.split(self)

        def measure(state, images):
            branch = nnx.merge(graph, state)
            x, tokens = branch.stem_with_tokens(images, train=False)
            found = []
            for number in range(len(branch.names)):
                x, tokens = branch.stage_with_tokens(number, x, tokens, train=False)
                found.append(x)
            return found

        try:
            maps = jax.eval_shape(measure, state, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        except StageError:
            raise
        except Exception as error:  # whatever a module of somebody's own raises
            raise StageError(
                f"{type(self.module).__name__} cannot read an image of the shape {shape}: {error}"
            ) from error
        last = len(maps) - 1
        return tuple(
            Stage(
                name,
                x.shape[-1],
                max(shape[0] // x.shape[1], 1) if x.ndim == len(shape) + 1 and x.ndim > 2 else 1,
                dropout=number < last,
            )
            for number, (name, x) in enumerate(zip(self.names, maps, strict=True))
        )


def own_backbone(
    build: Callable[..., nnx.Module],
    stages: Sequence[str],
    *,
    side: int = 64,
    num_axes: int = 2,
) -> Callable[..., Backbone]:
    """An entry of `registry.BACKBONES` for a network of one's own.

    Args:
      build: `(num_channels, *, rngs) -> nnx.Module`.
      stages: names of its sub-modules; see `OwnNetwork`.
      side: of images that it can read, on which stages are measured.
      num_axes: spatial axes.
    """

    def entry(num_channels: int, *, options: Any, rngs: nnx.Rngs) -> OwnNetwork:
        module = build(num_channels, rngs=nnx.Rngs(rngs.params()))
        return OwnNetwork(module, stages, (side,) * num_axes + (num_channels,))

    return entry


class _Answer(BaseException):
    """Leaves a call with what a sub-module answered; no `except Exception` on the way stops it."""

    def __init__(self, value: Any):
        self.value = value


_REACHED: contextvars.ContextVar[Mapping[int, tuple[str, Reached]] | None] = contextvars.ContextVar(
    "reached", default=None
)


@functools.cache
def _watching(kind: type) -> type:
    """The class of a module, whose calls are announced while `_watched` is entered."""

    def call(self, *args, **kwargs):
        run = functools.partial(kind.__call__, self, *args, **kwargs)
        name, reached = (_REACHED.get() or {}).get(id(self), ("", None))
        return run() if reached is None else reached(name, run)

    return type(kind.__name__, (kind,), {"__call__": call})


@contextlib.contextmanager
def _watched(module: nnx.Module, names: Sequence[str], reached: Reached) -> Iterator[None]:
    """Calls of named sub-modules go through `reached(name, run)`."""
    found = [(name, _submodule(module, name)) for name in names]
    kinds = [type(part) for _, part in found]
    before = _REACHED.set({id(part): (name, reached) for name, part in found})
    try:
        for (_, part), kind in zip(found, kinds, strict=True):
            object.__setattr__(part, "__class__", _watching(kind))
        yield
    finally:
        _REACHED.reset(before)
        for (_, part), kind in zip(found, kinds, strict=True):
            object.__setattr__(part, "__class__", kind)


def _submodule(module: nnx.Module, name: str) -> nnx.Module:
    found: Any = module
    for part in name.split("."):
        if isinstance(found, Sequence) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            found = getattr(found, part, None)
    if not isinstance(found, nnx.Module) or found is module:
        raise StageError(f"There is no sub-module {name!r}. {_listed(module)}")
    return found


def _prepared(module: nnx.Module) -> nnx.Module:
    """A copy without dropout of its own, of parameters and batch statistics alone."""
    module = nnx.clone(module)
    module.set_attributes(
        deterministic=True, dropout_rate=0.0, use_running_average=True, raise_if_not_found=False
    )
    module.set_attributes(nnx.Dropout, rate=0.0, raise_if_not_found=False)
    for _, part in list(nnx.iter_graph(module)):
        if isinstance(part, nnx.Module):
            for name, value in list(vars(part).items()):
                if isinstance(value, nnx.Rngs | nnx.RngStream):
                    setattr(part, name, nnx.data(None))
    _, _, _, others = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    if kept := [".".join(map(str, path)) for path, _ in nnx.to_flat_state(others)]:
        raise StageError(
            f"{type(module).__name__} keeps more than parameters and batch statistics: {kept}."
        )
    return module


def _listed(module: nnx.Module) -> str:
    """The names to choose from, in words."""
    names = [
        ".".join(map(str, path))
        for path, part in nnx.iter_modules(module)
        if path and not isinstance(part, nnx.List | nnx.Dict)
    ]
    if not names:
        return f"{type(module).__name__} has no sub-modules: make layers attributes of it."
    return f"Its sub-modules are {', '.join(names)}."


def _kind(found: Any) -> str:
    """What an answer is, in words."""
    if isinstance(found, jax.Array):
        return f"an array of the shape {found.shape}"
    return f"a {type(found).__name__}"
