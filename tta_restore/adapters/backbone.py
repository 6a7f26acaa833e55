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

from tta_restore._core.ambient import global_random, usual_defaults
from tta_restore.adapters.examination import examine_copies, expect_exchangeable
from tta_restore.adapters.injection import CONTEXT, Injection
from tta_restore.adapters.prefix_cache import PrefixCache
from tta_restore.adapters.replica import Outside, Replica, outside_functions
from tta_restore.models import Restoration, Restorer, RestorerSpec
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.preserve import fingerprint, preserve_state

__all__ = ["Backbone", "lock_of"]

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_lock_of_functions = threading.RLock()
_lock_of_locks = threading.Lock()
_backbones: WeakSet[Backbone] = WeakSet()
_REMEMBERS = (
    "the model's output depends on its earlier calls; each pass starts from the state that the model is in, as if its "
    "frame were the first one"
)

_ATTEMPTS = 20  # to copy a module that other threads call


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
    A module of which no replica works is run itself as it is; its weights cannot be exchanged.
    """

    def __init__(
        self,
        restorer: Restorer,
        injection: Injection | None = None,
        *,
        training: bool = False,
        share: bool = True,
        memory_format: torch.memory_format = torch.contiguous_format,
        asker: str = "adapter",
        adapts: bool = False,
    ) -> None:
        self.asker = asker
        """Name in errors."""
        self.adapts = adapts
        """True if weights are to be exchanged."""
        self.restorer = restorer
        self.injection = injection
        self.training = training
        self.memory_format = memory_format
        self.prefix: PrefixCache | None = None
        plain = isinstance(self.root, nn.Module) and not isinstance(self.root, torch.jit.ScriptModule)
        if plain and self.root is restorer.module:
            self.prefix = PrefixCache() if share and not training else None
        self.copies: bool | None = None if plain else False
        """True if replicas of the module work; None until tried."""
        self.problem = ""
        """Why replicas do not work."""
        self.remark = ""
        """Messages for the user about how the module behaves when it is run."""
        self.reuses_memory = True
        """True if the module may return the same memory from call to call."""
        self._draws: bool | None = None
        """True if the model draws global random numbers in eval mode; None before the first session."""
        self._with_graph: Replica | Outside | None = None
        self._without: Replica | Outside | None = None
        self._held = contextlib.ExitStack()
        self._open = False  # a session
        _backbones.add(self)

    def twin(self) -> Backbone:
        """Return another backbone around the same module, for another adapter."""
        twin = Backbone(
            self.restorer,
            self.injection,
            training=self.training,
            share=self.prefix is not None,
            memory_format=self.memory_format,
            asker=self.asker,
            adapts=self.adapts,
        )
        twin.copies, twin.problem, twin.remark = self.copies, self.problem, self.remark
        twin.reuses_memory, twin._draws = self.reuses_memory, self._draws
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
        self._with_graph = self._without = None
        self._held, self._open = contextlib.ExitStack(), False
        if self.prefix is not None and self.prefix.frame is not None:
            self.prefix.share(None)

    def parameters(self) -> dict[str, Tensor]:
        """Return the module's own weights by name, then injected ones; weights that share a tensor once."""
        own: dict[str, Tensor] = dict(self.root.named_parameters()) if isinstance(self.root, nn.Module) else {}
        return own if self.injection is None else own | self.injection.weights()

    def share(self, frame: Tensor) -> None:
        """Name the tensor whose frozen prefix the coming passes share, until the session ends."""
        if self.prefix is not None and frame.shape not in self.prefix.nothing:
            self.prefix.share(frame)

    @contextlib.contextmanager
    def session(
        self, frame: Tensor, companions: list[nn.Module], arguments: Mapping[str, Any], seed: Callable[[], int]
    ) -> Iterator[None]:
        """Open the time in which passes may run; afterwards everything is as it was.

        Gradients are off inside until switched on, an outer ``inference_mode`` does not reach in, and autocast does not
        cache its casts: it would keep using weights of before a step. ``companions`` run in eval mode. A model that
        draws global random numbers, as in train mode, gets those of ``seed``.
        """
        with contextlib.ExitStack() as stack:
            for module in sorted({self.root, *companions}, key=id):  # one order for all, or two could wait for ever
                stack.enter_context(lock_of(module))
            if self._open:  # in this thread, as others wait for the lock
                raise RuntimeError(
                    f"{self.asker}: was called within its own frame, as by a hook of the model or by activation "
                    "checkpointing around the adapter; call it outside of them"
                )
            self._open = True
            stack.callback(setattr, self, "_open", False)
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(usual_defaults(next(iter(self.parameters().values()), None)))
            device = frame.device.type
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
            drawn = None
            if self.training or self._draws is not False:
                drawn = stack.enter_context(global_random(frame.device))
            self.measure(frame, arguments)
            stack.callback(self._end)
            if not self._start(frame, arguments) and isinstance(self.root, nn.Module):
                stack.enter_context(preserve_state(self.root, training=self.training))
            for module in companions:
                stack.enter_context(preserve_state(module, training=False))
            if drawn is not None:
                drawn.seed(seed())
            yield
            if drawn is not None and self._draws is None:
                self._draws = drawn.drawn()

    def measure(self, frame: Tensor, arguments: Mapping[str, Any]) -> RestorerSpec:
        """Return the specification; where it is not known yet, it is measured on a replica if there can be one."""
        if self.restorer.spec is None and self.copies is not False and not outside_functions(self.root):
            with contextlib.suppress(Exception), torch.inference_mode(False):  # the module itself is tried then
                return self.restorer.known_spec(frame, on=Replica(self.root).root, **arguments)
        return self.restorer.known_spec(frame, **arguments)

    def restore(self, tensors: Mapping[str, Tensor] | None, frame: Tensor, **arguments: Any) -> Restoration:
        """Restore a frame with ``tensors`` in place of the module's weights, or with its own. Needs a session.

        Without ``tensors`` it is the plain module, without injected layers.
        """
        if self.prefix is None or frame is not self.prefix.frame:
            return self._pass(tensors, frame, arguments)
        roots = self._host(tensors).root, self._host(None).root
        return self.prefix.run(self._pass, roots, tensors, frame, arguments)

    def module(self, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """Return the module object that the next pass with ``tensors`` runs, for hooks."""
        return self._host(tensors).root

    def _pass(self, tensors: Mapping[str, Tensor] | None, frame: Tensor, arguments: dict[str, Any]) -> Restoration:
        host = self._host(tensors)
        call, context = host.module, arguments.get(CONTEXT)
        if tensors is None:
            host.reset()
            return self._kept(self.restorer.restore(frame, call=call, memory_format=self.memory_format, **arguments))
        own = self.parameters()
        used = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
        with contextlib.ExitStack() as stack:
            if torch.is_grad_enabled():  # recomputed activations need the weights until the next pass with gradients
                self._held.close()
                stack = self._held
            host.reset()
            stack.enter_context(host.holding(used))
            if context is not None and self.injection is not None:
                if len(frame) == 1 or self.restorer.known_spec(frame).batched:
                    arguments = {name: value for name, value in arguments.items() if name != CONTEXT}
                    stack.enter_context(self.injection.active(host.root, used, context))
                else:
                    call = partial(self._with_context, host, used)  # each image with its own context
            return self._kept(self.restorer.restore(frame, call=call, memory_format=self.memory_format, **arguments))

    def _kept(self, restoration: Restoration) -> Restoration:
        """Return an output that the next pass does not write into."""
        if not self.reuses_memory or torch.is_grad_enabled():
            return restoration
        raw = outputs.transform(restoration.raw, lambda _, leaf: leaf.clone())
        return Restoration(restoration.image.clone(), raw, restoration.path)

    def _with_context(
        self, host: Replica | Outside, used: Mapping[str, Tensor], inputs: Tensor, **keywords: Any
    ) -> Any:
        context = keywords.pop(CONTEXT)
        with self.injection.active(host.root, used, context):  # type: ignore[union-attr]
            return host.module(inputs, **keywords)

    def _host(self, tensors: Mapping[str, Tensor] | None) -> Replica | Outside:
        host = self._with_graph if tensors is not None and torch.is_grad_enabled() else self._without
        if host is None:
            raise RuntimeError("adapter: the model can be run while a frame is worked on only")
        return host

    def _start(self, frame: Tensor, arguments: Mapping[str, Any]) -> bool:
        """Make the replicas ready; return whether there are any.

        Raises:
            TypeError: the model's weights cannot be exchanged (any more).
            ValueError: they have no values.
        """
        if self.copies is None:
            expect_exchangeable(self.asker, self.root, self.adapts or None)
            found = examine_copies(
                self._replica,
                self.restorer,
                frame,
                arguments,
                training=self.training,
                memory_format=self.memory_format,
            )
            if found.created:
                raise ValueError(
                    f"{self.asker}: {type(self.root).__name__} creates weights in its first pass "
                    f"({', '.join(found.created[:3])}); run it on a frame first"
                )
            self.problem, self.reuses_memory = found.problem, found.reuses_memory
            self.remark = _REMEMBERS if found.remembers else ""
            self.copies = not self.problem
            if found.replicas is not None:
                self._with_graph, self._without = found.replicas
        if not self.copies:
            expect_exchangeable(self.asker, self.root, self.adapts or None)
            if self._without is None:
                self._with_graph = self._without = Outside(self.restorer.module, self.root)
            return False
        now = fingerprint(self.root)
        replicas = [host for host in (self._with_graph, self._without) if isinstance(host, Replica)]
        if len(replicas) < 2 or any(replica.fingerprint != now for replica in replicas):
            expect_exchangeable(self.asker, self.root, self.adapts or None)
            self._with_graph, self._without = replicas = [self._replica(), self._replica()]
            if self.prefix is not None:
                self.prefix.forget()
        for replica in replicas:
            replica.start(training=self.training)
        return True

    def _end(self) -> None:
        self._held.close()
        for host in (self._with_graph, self._without):
            if isinstance(host, Replica):
                host.end()
        if self.prefix is not None and self.prefix.frame is not None:
            self.prefix.share(None)

    def _replica(self) -> Replica:
        root, module = self.root, self.restorer.module
        compiled = module if hasattr(module, "_orig_mod") else None
        for _ in range(_ATTEMPTS):
            try:
                return Replica(root, compiled)
            except RuntimeError as error:  # another thread calls the module, which sets attributes
                if "changed size during iteration" not in str(error):
                    raise
        return Replica(root, compiled)
