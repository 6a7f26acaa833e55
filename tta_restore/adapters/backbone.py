"""Run one user's module with other tensors in place of its own, one caller at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tta_restore.adapters.injection import CONTEXT, Injection, is_injected
from tta_restore.adapters.prefix_cache import PrefixCache
from tta_restore.models import Restoration, Restorer
from tta_restore.models.restorer.preserve import preserve_state

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_lock_of_functions = threading.RLock()
_lock_of_locks = threading.Lock()


def lock_of(module: Any) -> threading.RLock:
    """The one lock of a module, whoever asks; functions share one."""
    if not isinstance(module, nn.Module):
        return _lock_of_functions
    with _lock_of_locks:
        return _locks.setdefault(module, threading.RLock())


class Backbone:
    """The user's module behind a :class:`Restorer`, shared by all adapters around it.

    ``functional_call`` swaps attributes of the module for the time of a call; two threads doing so at once would
    corrupt it, so every session holds the lock that belongs to the module.
    """

    def __init__(
        self,
        restorer: Restorer,
        injection: Injection | None = None,
        *,
        training: bool = False,
        share: bool = True,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.restorer = restorer
        self.injection = injection
        self.training = training
        self.memory_format = memory_format
        self.prefix: PrefixCache | None = None
        if isinstance(restorer.module, nn.Module) and not hasattr(restorer.module, "_orig_mod"):
            self.prefix = PrefixCache(restorer.module) if share and not training else None
        self._frozen: dict[str, Tensor] | None = None

    def twin(self) -> Backbone:
        """Another one for the same module, for another adapter."""
        return Backbone(
            self.restorer,
            self.injection,
            training=self.training,
            share=self.prefix is not None,
            memory_format=self.memory_format,
        )

    @property
    def root(self) -> Any:
        """The module without the wrapping of torch.compile."""
        return getattr(self.restorer.module, "_orig_mod", self.restorer.module)

    @property
    def lock(self) -> threading.RLock:
        """The lock of the module, the same for every adapter around it."""
        return lock_of(self.root)

    def parameters(self) -> dict[str, Tensor]:
        """The module's own weights by name, then those injected; weights that share a tensor once."""
        own: dict[str, Tensor] = dict(self.root.named_parameters()) if isinstance(self.root, nn.Module) else {}
        return own if self.injection is None else own | self.injection.weights()

    def look_at(self, frame: Tensor) -> None:
        """What the passes to come have in common, until the session ends."""
        if self.prefix is not None:
            self.prefix.look_at(frame)

    @contextlib.contextmanager
    def session(self, frame: Tensor, companions: list[nn.Module]) -> Iterator[None]:
        """Time in which the module may be run with other tensors; afterwards it is as it was.

        Gradients are off inside until switched on, an outer ``inference_mode`` does not reach in, and autocast does not
        cache its casts: it would keep using weights of before a step. ``companions`` run in eval mode.
        """
        with contextlib.ExitStack() as stack:
            for module in sorted({self.root, *companions}, key=id):  # one order for all, or two could wait for ever
                stack.enter_context(lock_of(module))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            device = frame.device.type
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
            self.restorer.known_spec(frame)
            if isinstance(self.root, nn.Module):
                stack.enter_context(preserve_state(self.root, training=self.training))
            for module in companions:
                stack.enter_context(preserve_state(module, training=False))
            stack.callback(setattr, self, "_frozen", None)
            if self.prefix is not None:
                stack.callback(self.prefix.look_at, None)
            yield

    def restore(self, tensors: Mapping[str, Tensor] | None, frame: Tensor, **arguments: Any) -> Restoration:
        """Restoration of a frame with ``tensors`` in place of the module's own, or with its own. Needs a session.

        Without ``tensors`` it is the plain module's, nothing injected.
        """
        prefix = self.prefix if self.prefix is not None and frame is self.prefix.frame else None
        if prefix is not None and prefix.names is None and tensors is not None and torch.is_grad_enabled():
            disturbed = {name: tensor.detach() * 1.1 + 0.01 for name, tensor in tensors.items()}
            return prefix.discover(
                lambda: self._restore(tensors, frame, arguments), lambda: self._restore(disturbed, frame, arguments)
            )
        if prefix is None:
            return self._restore(tensors, frame, arguments)
        return prefix.run(lambda: self._restore(tensors, frame, arguments))

    def _restore(
        self, tensors: Mapping[str, Tensor] | None, frame: Tensor, arguments: Mapping[str, Any]
    ) -> Restoration:
        module: Any = self.restorer.module
        if tensors is None:
            return self.restorer.restore(
                frame, call=lambda inputs, **keywords: module(self._laid_out(inputs), **keywords), **arguments
            )
        own = self.parameters()
        used = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
        if torch.is_grad_enabled():
            used = self._detached(own, tensors) | used
        prefix = "_orig_mod." if self.root is not self.restorer.module else ""
        inside = {prefix + name: tensor for name, tensor in used.items() if not is_injected(name)}

        def call(inputs: Tensor, **keywords: Any) -> Any:
            inputs = self._laid_out(inputs)
            context = keywords.pop(CONTEXT, None)
            if context is None or self.injection is None:
                return functional_call(module, inside, (inputs,), keywords)
            with self.injection.active(self.root, used, context):
                return functional_call(module, inside, (inputs,), keywords)

        return self.restorer.restore(frame, call=call, **arguments)

    def _laid_out(self, inputs: Tensor) -> Tensor:
        # The caller has made this tensor for the model, which may write into it. Clips have no channels_last.
        if inputs.ndim != 4 or self.memory_format == torch.contiguous_format:
            return inputs
        return inputs.contiguous(memory_format=self.memory_format)

    def _detached(self, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Frozen weights without their flag, so that no gradient is computed for them and the flag stays untouched."""
        if self._frozen is None:
            self._frozen = {
                name: parameter.clone() if parameter.is_inference() else parameter.detach()
                for name, parameter in own.items()
                if name not in tensors and (parameter.requires_grad or parameter.is_inference())
            }
        return self._frozen
