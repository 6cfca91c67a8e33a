"""The recorder: three hooks on a policy, which do nothing until somebody records."""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from r2m_client.capture import _find
from r2m_client.capture._passes import Pass
from r2m_client.capture._taken import Taken


class Recorder:
    """Takes the output of a policy's final norm.

    Make it once, before the policy's first pass if that is compiled, and before or after it is
    wrapped (PEFT first; FSDP, DDP, torch.compile in any order). Passes of any thread are taken.
    What a backward pass computes again (activation checkpointing) is not taken twice. Deep copies
    of the policy, such as a reference model, are not recorded.

    Args:
        policy: a causal LM.
        norm: its final norm, where it cannot be found: a dotted name, or the module.

    Attributes:
        width: D_p as the policy's configuration has it; None: it does not say.
        norm: the module.

    Raises:
        ValueError: no norm was found, or it is no part of the policy.
    """

    def __init__(self, policy: nn.Module, norm: str | nn.Module | None = None) -> None:
        self._decoder = _find.decoder(policy)
        self.norm = _find.final_norm(policy, self._decoder, norm)
        self.width = _find.width(self._decoder)
        self._signature = inspect.signature(self._decoder.forward)
        kinds = {one.kind: name for name, one in self._signature.parameters.items()}
        self._rest = kinds.get(inspect.Parameter.VAR_KEYWORD, "")
        self._policy = _find.unwrapped(policy)
        self._open: list[tuple[Taken, Callable[[Pass], bool] | None]] = []
        self._local = threading.local()
        self._checked = False
        first = _hook(self, self._decoder, Recorder._begin)
        seen = _hook(self, self.norm, Recorder._norm_ran)
        last = _hook(self, self._decoder, Recorder._end)
        self._handles = [
            self._decoder.register_forward_pre_hook(first, with_kwargs=True),
            self.norm.register_forward_hook(seen, with_kwargs=True),
            self._decoder.register_forward_hook(last, with_kwargs=True),
        ]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextlib.contextmanager
    def recording(self, when: Callable[[Pass], bool] | None = None) -> Generator[Taken]:
        """Take the passes that run within the block; one may lie within another.

        Args:
            when: which passes, before they run; None: all.

        Raises:
            RuntimeError: in a pass: its norm did not run, or ran twice.
            ValueError: in a pass: the norm is not the policy's last one, or has another width.
        """
        if not self._handles:
            raise RuntimeError("this Recorder is closed")
        taken = Taken(self._ends())
        entry = (taken, when)
        self._open.append(entry)
        try:
            yield taken
        finally:
            self._open.remove(entry)

    def _ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a generation, as the policy has them."""
        found: int | list[int] | None = None
        for place in ("generation_config", "config"):
            found = getattr(getattr(self._policy, place, None), "eos_token_id", None)
            if found is not None:
                break
        return tuple(found) if isinstance(found, list) else () if found is None else (found,)

    def _begin(self, args: Any, kwargs: dict[str, Any]) -> None:
        if not self._open or _in_backward():
            self._local.now = None
            return
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given.update(given.pop(self._rest, {}))
        one = Pass.of(given)
        wanted = [taken for taken, when in self._open if when is None or when(one)]
        self._local.now = (one, wanted) if wanted else None

    def _norm_ran(self, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        now = getattr(self._local, "now", None)
        if now is None:
            return
        one: Pass = now[0]
        if one.states is not None:
            raise RuntimeError(f"{type(self.norm).__name__} ran twice in one pass of the policy")
        if output.ndim != 3 or (self.width is not None and output.shape[-1] != self.width):
            raise ValueError(
                f"the norm {type(self.norm).__name__} gives {list(output.shape)}, the policy's "
                f"hidden states are [batch, tokens, {self.width or 'width'}]: another layer, or a "
                "policy whose width changed"
            )
        one.states = output.detach()

    def _end(self, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        now, self._local.now = getattr(self._local, "now", None), None
        if now is None:
            return
        one: Pass = now[0]
        if one.states is None:
            raise RuntimeError(
                f"the policy's pass did not run its {type(self.norm).__name__} where it is seen"
            )
        self._check(one.states, output)
        one.remember_cache(output)
        for taken in now[1]:
            taken.add(one)

    def _check(self, states: Tensor, output: Any) -> None:
        """Once: what the norm gave is what the decoder gives."""
        last = (
            output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
        )
        if self._checked or not isinstance(last, Tensor):
            return
        same = last.shape == states.shape and (
            last.data_ptr() == states.data_ptr() or torch.equal(last, states)
        )
        if not same:
            raise ValueError(
                f"{type(self.norm).__name__} is not the policy's final norm: what it gives is not "
                "the last hidden state"
            )
        self._checked = True


def _in_backward() -> bool:
    """Whether autograd runs here: a pass is then activation checkpointing's, and was seen before.

    torch has no public name for it; its own torch.utils.checkpoint asks in the same way.
    """
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage]


def _hook(recorder: Recorder, module: nn.Module, call: Callable[..., None]) -> Callable[..., None]:
    """A hook that leaves the pass as it is.

    It holds the recorder weakly, and ignores other modules: deep copies of the policy share it.
    Compiled code calls it as it is, which divides the policy's graph there.
    """
    weak = weakref.ref(recorder)

    def hook(seen: nn.Module, *arguments: Any) -> None:
        own = weak()
        if own is not None and seen is module:
            call(own, *arguments)

    disabled: Any = torch.compiler.disable(hook)
    return disabled
