"""Run one module with other tensors in place of its weights, without ever changing the module."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from tta_restore._core.ambient import usual_defaults
from tta_restore.adapters.injection import CONTEXT, Injection
from tta_restore.adapters.prefix_cache import PrefixCache
from tta_restore.adapters.replica import InPlace, Replica, behaves_alike, signature
from tta_restore.models import Restoration, Restorer
from tta_restore.models.restorer.preserve import preserve_state

__all__ = ["Backbone", "lock_of"]

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_lock_of_functions = threading.RLock()
_lock_of_locks = threading.Lock()
_backbones: WeakSet[Backbone] = WeakSet()
_TRIED = 64  # side in pixels of the crops on which a replica is compared with its module


def lock_of(module: Any) -> threading.RLock:
    """Return the lock of a module, the same for every caller; functions share one."""
    if not isinstance(module, nn.Module):
        return _lock_of_functions
    with _lock_of_locks:
        return _locks.setdefault(module, threading.RLock())


def _after_fork() -> None:
    """Make all locks anew in a forked child, where the threads that held them do not exist."""
    global _lock_of_functions, _lock_of_locks
    _locks.clear()
    _lock_of_functions, _lock_of_locks = threading.RLock(), threading.Lock()
    for backbone in list(_backbones):
        backbone.drop_replicas()


os.register_at_fork(after_in_child=_after_fork)


class Backbone:
    """The module behind a :class:`Restorer`, run with adapted tensors in place of its weights.

    Passes run on two private replicas of the module's objects, which share the memory of its weights: one for passes
    with gradients, whose weights stay in place until the graph is done, as activation checkpointing needs it, and one
    for all others. The module itself is neither run nor changed, so that other threads may use it at any time.
    A module of which no replica works is run itself, and adapters around it take turns.
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
        plain = isinstance(restorer.module, nn.Module) and not isinstance(self.root, torch.jit.ScriptModule)
        if plain and self.root is restorer.module:
            self.prefix = PrefixCache() if share and not training else None
        self.copies: bool | None = None if plain and self.root is restorer.module else False
        """True if replicas of the module work; None until tried."""
        self._with_graph: Replica | InPlace | None = None
        self._without: Replica | InPlace | None = None
        self._frozen: dict[str, Tensor] | None = None
        self._held = contextlib.ExitStack()
        _backbones.add(self)

    def twin(self) -> Backbone:
        """Return another backbone around the same module, for another adapter."""
        twin = Backbone(
            self.restorer,
            self.injection,
            training=self.training,
            share=self.prefix is not None,
            memory_format=self.memory_format,
        )
        twin.copies = self.copies
        return twin

    def __getstate__(self) -> dict[str, Any]:
        self.drop_replicas()
        # torch.save pickles by protocol 2, which a memory format cannot
        channels_last = self.memory_format == torch.channels_last
        return {name: value for name, value in vars(self).items() if name != "_held"} | {"memory_format": channels_last}

    def __setstate__(self, state: dict[str, Any]) -> None:
        memory_format = torch.channels_last if state["memory_format"] else torch.contiguous_format
        vars(self).update(state, _held=contextlib.ExitStack(), memory_format=memory_format)
        _backbones.add(self)

    @property
    def root(self) -> Any:
        """The module without the wrapping of torch.compile."""
        return getattr(self.restorer.module, "_orig_mod", self.restorer.module)

    @property
    def lock(self) -> threading.RLock:
        """The lock of the module, the same for every adapter around it."""
        return lock_of(self.root)

    def drop_replicas(self) -> None:
        """Delete the replicas; the next session creates them again."""
        self._with_graph = self._without = self._frozen = None
        self._held = contextlib.ExitStack()
        if self.prefix is not None:
            self.prefix.share(None)

    def parameters(self) -> dict[str, Tensor]:
        """Return the module's own weights by name, then injected ones; weights that share a tensor once."""
        own: dict[str, Tensor] = dict(self.root.named_parameters()) if isinstance(self.root, nn.Module) else {}
        return own if self.injection is None else own | self.injection.weights()

    def share(self, frame: Tensor) -> None:
        """Name the tensor whose frozen prefix the coming passes share, until the session ends."""
        if self.prefix is not None:
            self.prefix.share(frame)

    @contextlib.contextmanager
    def session(self, frame: Tensor, companions: list[nn.Module], arguments: Mapping[str, Any]) -> Iterator[None]:
        """Open the time in which passes may run; afterwards everything is as it was.

        Gradients are off inside until switched on, an outer ``inference_mode`` does not reach in, and autocast does not
        cache its casts: it would keep using weights of before a step. ``companions`` run in eval mode.
        """
        with contextlib.ExitStack() as stack:
            for module in sorted({self.root, *companions}, key=id):  # one order for all, or two could wait for ever
                stack.enter_context(lock_of(module))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(usual_defaults(next(iter(self.parameters().values()), None)))
            device = frame.device.type
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
            self.restorer.known_spec(frame, **arguments)
            stack.callback(self._end)
            if not self._start(frame, arguments) and isinstance(self.root, nn.Module):
                stack.enter_context(preserve_state(self.root, training=self.training))
            for module in companions:
                stack.enter_context(preserve_state(module, training=False))
            yield

    def restore(self, tensors: Mapping[str, Tensor] | None, frame: Tensor, **arguments: Any) -> Restoration:
        """Restore a frame with ``tensors`` in place of the module's weights, or with its own. Needs a session.

        Without ``tensors`` it is the plain module, without injected layers.
        """
        prefix = self.prefix if self.prefix is not None and frame is self.prefix.frame else None
        if prefix is None or prefix.names == ():
            return self._pass(tensors, frame, arguments)
        if prefix.names is not None:
            return prefix.run(self._pass, self._host(tensors).root, tensors, frame, arguments)
        if tensors is None or not torch.is_grad_enabled():
            return self._pass(tensors, frame, arguments)
        roots = self._host(tensors).root, self._host(None).root
        return prefix.discover(self._pass, roots, tensors, frame, arguments)

    def module(self, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """Return the module object that the next pass with ``tensors`` runs, for hooks."""
        return self._host(tensors).root

    def _pass(self, tensors: Mapping[str, Tensor] | None, frame: Tensor, arguments: dict[str, Any]) -> Restoration:
        host = self._host(tensors)
        call, context = host.module, arguments.get(CONTEXT)
        if tensors is None:
            return self.restorer.restore(frame, call=call, memory_format=self.memory_format, **arguments)
        own = self.parameters()
        used = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
        graph = torch.is_grad_enabled()
        with contextlib.ExitStack() as stack:
            if graph and host.private:  # recomputed activations need the weights until the next pass with gradients
                self._held.close()
                stack = self._held
            elif graph:
                used = self._detached(own, tensors) | used
            stack.enter_context(host.holding(used))
            if context is not None and self.injection is not None:
                if len(frame) == 1 or self.restorer.known_spec(frame).batched:
                    arguments = {name: value for name, value in arguments.items() if name != CONTEXT}
                    stack.enter_context(self.injection.active(host.root, used, context))
                else:
                    call = partial(self._with_context, host, used)  # each image with its own context
            return self.restorer.restore(frame, call=call, memory_format=self.memory_format, **arguments)

    def _with_context(
        self, host: Replica | InPlace, used: Mapping[str, Tensor], inputs: Tensor, **keywords: Any
    ) -> Any:
        context = keywords.pop(CONTEXT)
        with self.injection.active(host.root, used, context):  # type: ignore[union-attr]
            return host.module(inputs, **keywords)

    def _host(self, tensors: Mapping[str, Tensor] | None) -> Replica | InPlace:
        host = self._with_graph if tensors is not None and torch.is_grad_enabled() else self._without
        if host is None:
            raise RuntimeError("adapter: the model can be run while a frame is worked on only")
        return host

    def _start(self, frame: Tensor, arguments: Mapping[str, Any]) -> bool:
        """Make the replicas ready; return whether there are any."""
        if self.copies is None:
            self.copies = self._replica_works(frame, arguments)
        if not self.copies:
            if self._without is None:
                self._with_graph = self._without = InPlace(self.restorer.module, self.root)
            return False
        now = signature(self.root)
        replicas = [host for host in (self._with_graph, self._without) if isinstance(host, Replica)]
        if len(replicas) < 2 or any(replica.signature != now for replica in replicas):
            self._with_graph, self._without = replicas = [Replica(self.root), Replica(self.root)]
        buffers: dict[int, Tensor] = {}
        for replica in replicas:
            replica.start(buffers, training=self.training)
        return True

    def _end(self) -> None:
        self._held.close()
        self._frozen = None
        for host in (self._with_graph, self._without):
            if isinstance(host, Replica):
                host.end()
        if self.prefix is not None:
            self.prefix.share(None)

    def _replica_works(self, frame: Tensor, arguments: Mapping[str, Any]) -> bool:
        frames = self.restorer.known_spec(frame).frames
        if frame.ndim == 4 and frames != 1:  # a clip, for methods that restore it frame by frame
            frame = frame[torch.arange(frames or len(frame)) % len(frame)][None]
        try:
            replica = Replica(self.root)
        except Exception:  # whatever copying a third-party module raises
            return False

        def run(call: Callable[..., Any], x: Tensor) -> Any:
            return self.restorer.restore(x, call=call, memory_format=self.memory_format, **arguments).raw

        for crop in (frame if arguments else frame[:1, ..., :_TRIED, :_TRIED], frame):
            alike = behaves_alike(self.root, replica, [crop, 0.9 - 0.8 * crop.flip(-1)], run, training=self.training)
            if alike is not None:
                return alike
        return True  # the module itself raises, and will again

    def _detached(self, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Frozen weights without their flag, so that no gradient is computed for them and the flag stays untouched."""
        if self._frozen is None:
            self._frozen = {
                name: parameter.clone() if parameter.is_inference() else parameter.detach()
                for name, parameter in own.items()
                if name not in tensors and (parameter.requires_grad or parameter.is_inference())
            }
        return self._frozen
