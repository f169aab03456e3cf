"""`Component`: the functions and hooks of one component, gathered by decorators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from headrace.sdk.batch_function import MAX_BATCH, BatchFunction
from headrace.sdk.errors import DefinitionError
from headrace.sdk.function import Function, Hook

_F = TypeVar("_F", bound=Callable[..., Any])


class Component:
    """The functions of a component.

        component = Component()

        @component.action
        async def price(order: Order, ctx: Context) -> Priced: ...

    A function takes the input (its annotation says how it is decoded) and, if it wants, a `Context`. It is
    `async`, or plain: then it runs in a thread. What it returns, unless None, is emitted as one message.
    """

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}
        self._init: Hook | None = None
        self._close: Hook | None = None
        self._startup: Hook | None = None
        self._shutdown: Hook | None = None
        self._credentials: Hook | None = None
        self._verify: Hook | None = None
        self._metadata: dict[str, Hook] = {}
        self._models: dict[str, Hook] = {}

    @overload
    def action(self, function: _F) -> _F: ...
    @overload
    def action(self, *, name: str) -> Callable[[_F], _F]: ...
    def action(self, function: _F | None = None, *, name: str = "") -> _F | Callable[[_F], _F]:
        """Handles messages of earlier steps."""
        return self._register("action", function, name)

    @overload
    def process_batch(self, function: _F) -> _F: ...
    @overload
    def process_batch(self, *, name: str = "", max: int = MAX_BATCH) -> Callable[[_F], _F]: ...
    def process_batch(
        self,
        function: _F | None = None,
        *,
        name: str = "",
        max: int = MAX_BATCH,
    ) -> _F | Callable[[_F], _F]:
        """An action that gets the messages that wait, from 1 to `max` a call, in the order in which they came:

            @component.process_batch
            async def insert(rows: list[Row], contexts: list[Context]) -> list[Stored | ComponentError]: ...

        What it returns, unless None, is a list with an entry for each message: a value that is emitted, None, or an
        exception, which fails that message alone. `contexts[i].emit`, `reply`, `snapshot` and `log` are of one message.
        """
        return self._register("action", function, name, lambda made, target: BatchFunction(made, target, max))

    @overload
    def trigger(self, function: _F) -> _F: ...
    @overload
    def trigger(self, *, name: str) -> Callable[[_F], _F]: ...
    def trigger(self, function: _F | None = None, *, name: str = "") -> _F | Callable[[_F], _F]:
        """Starts executions from a request, a tick or an injected message."""
        return self._register("trigger", function, name)

    @overload
    def listener(self, function: _F) -> _F: ...
    @overload
    def listener(self, *, name: str) -> Callable[[_F], _F]: ...
    def listener(self, function: _F | None = None, *, name: str = "") -> _F | Callable[[_F], _F]:
        """Starts executions by itself: called once, with a Context, runs until `ctx.draining` is set."""
        return self._register("listener", function, name)

    def init(self, function: _F) -> _F:
        """Runs once before the first input; takes the configuration (typed if annotated), a Context, or both.

        It opens no source. An exception keeps the step from starting.
        """
        if self._init is not None:
            raise DefinitionError("the component has two init hooks")
        self._init = Hook(function)
        return function

    def close(self, function: _F) -> _F:
        """Runs once after the last call of a process, as init before the first; takes what init may take."""
        if self._close is not None:
            raise DefinitionError("the component has two close hooks")
        self._close = Hook(function)
        return function

    def startup(self, function: _F) -> _F:
        """Runs once when a flow starts (once per deployment), before its first message, however many processes the
        step has; takes what init may take. Only of the step that a flow's messages come to first.

        What it returns (at most 64 KiB of JSON) is kept and handed to the shutdown hook. An exception is logged and
        ignored; after 60 s it is given up. Only if its process is killed meanwhile is it called a second time.
        """
        if self._startup is not None:
            raise DefinitionError("the component has two startup hooks")
        self._startup = Hook(function)
        return function

    def shutdown(self, function: _F) -> _F:
        """Runs once when a flow was stopped (its deployment has finished its last message), maybe in another process
        than startup; `ctx.startup_result` is what that returned. As startup otherwise."""
        if self._shutdown is not None:
            raise DefinitionError("the component has two shutdown hooks")
        self._shutdown = Hook(function)
        return function

    def credentials_changed(self, function: _F) -> _F:
        """Runs when the step's credential got a new value, while calls run: takes it (typed if annotated), a Context,
        or both. From its end on `ctx.credentials` is the new one; an exception keeps the old one, and says why.

        Without this hook the new value is simply there: right for a component that reads `ctx.credentials` in each
        call, and not for one that logs in once, in its init hook.
        """
        if self._credentials is not None:
            raise DefinitionError("the component has two hooks for changed credentials")
        self._credentials = Hook(function, "credentials")
        return function

    def verify(self, function: _F) -> _F:
        """Tells whether a credential is good: takes it (typed if annotated), a Context, or both. None or True: it is;
        False, or an exception, whose words a person sees: it is not. Runs in a process of its own, without init."""
        if self._verify is not None:
            raise DefinitionError("the component has two verify hooks")
        self._verify = Hook(function, "credentials")
        return function

    @overload
    def metadata(self, function: _F) -> _F: ...
    @overload
    def metadata(self, *, of: str) -> Callable[[_F], _F]: ...
    def metadata(self, function: _F | None = None, *, of: str = "") -> _F | Callable[[_F], _F]:
        """Says what a function (`of`, else any) takes and emits, where that depends on configuration and credential:
        takes the configuration, a Context, or both, answers a `Metadata`. Runs in a process of its own, without init.
        """
        return self._gather(self._metadata, of, "metadata of", function)

    @overload
    def select_model(self, function: _F) -> _F: ...
    @overload
    def select_model(self, *, name: str) -> Callable[[_F], _F]: ...
    def select_model(self, function: _F | None = None, *, name: str = "") -> _F | Callable[[_F], _F]:
        """Lists what can be chosen for a field of the configuration: takes the configuration, a Context, or both,
        answers `Choice`s, plain values, or a mapping of value to label. Runs in a process of its own, without init."""
        return self._gather(self._models, name or getattr(function, "__name__", ""), "model", function)

    def _gather(self, hooks: dict[str, Hook], name: str, what: str, function: _F | None) -> _F | Callable[[_F], _F]:
        def gather(target: _F) -> _F:
            key = name or (getattr(target, "__name__", "") if hooks is self._models else "")
            if key in hooks:
                raise DefinitionError(f"the component has two hooks for {what} {key or 'any function'}")
            hooks[key] = Hook(target)
            return target

        return gather if function is None else gather(function)

    def _register(
        self,
        kind: str,
        function: _F | None,
        name: str,
        make: Callable[[str, Callable[..., Any]], Function] | None = None,
    ) -> _F | Callable[[_F], _F]:
        def register(target: _F) -> _F:
            given = name or getattr(target, "__name__", "")
            made = make(given, target) if make is not None else Function(given, kind, target)
            for other in self._functions.values():
                if other.name == made.name or other.target is target:
                    _check_one_way(made, other)
            if made.name in self._functions:
                raise DefinitionError(f"the component has two functions named {made.name!r}")
            self._functions[made.name] = made
            return target

        return register if function is None else register(function)

    @property
    def functions(self) -> Mapping[str, Function]:
        return self._functions

    @property
    def init_hook(self) -> Hook | None:
        return self._init

    @property
    def close_hook(self) -> Hook | None:
        return self._close

    @property
    def startup_hook(self) -> Hook | None:
        return self._startup

    @property
    def shutdown_hook(self) -> Hook | None:
        return self._shutdown

    @property
    def credentials_hook(self) -> Hook | None:
        return self._credentials

    @property
    def verify_hook(self) -> Hook | None:
        return self._verify

    @property
    def models(self) -> Mapping[str, Hook]:
        """Those that can be chosen from, by name."""
        return self._models

    def metadata_hook(self, function: str) -> Hook | None:
        """The one for this function, else the one for any."""
        return self._metadata.get(function) or self._metadata.get("")

    def resolve(self) -> None:
        """Reads all annotations and builds the decoders; DefinitionError names what does not fit.

        Done by the loader once the module is complete, so that types may stand below the functions.
        """
        if not self._functions:
            raise DefinitionError("the component has no function; decorate one with @component.action")
        for function in self._functions.values():
            function.resolve()
        hooks = (self._init, self._close, self._startup, self._shutdown, self._credentials, self._verify)
        for hook in (*hooks, *self._metadata.values(), *self._models.values()):
            if hook is not None:
                hook.resolve()
        for name in self._metadata:
            if name:
                self.function(name)

    def function(self, name: str) -> Function:
        """The function of that name; without a name the only one. DefinitionError lists what there is."""
        if not name and len(self._functions) == 1:
            return next(iter(self._functions.values()))
        try:
            return self._functions[name]
        except KeyError:
            known = ", ".join(sorted(self._functions))
            raise DefinitionError(f"the component has no function {name!r}; it has: {known}") from None


def _check_one_way(made: Function, other: Function) -> None:
    """Two declarations of one function: is it called by message, or by batch?"""
    kinds = {isinstance(found, BatchFunction): found.kind for found in (made, other)}
    if len(kinds) < 2:
        return
    by_message = kinds[False]
    if by_message == "action":
        text = (
            "is declared by @component.action and by @component.process_batch: it gets one message a call, or batches"
        )
    else:
        text = f"is a {by_message} and has process_batch: only an action gets batches"
    raise DefinitionError(f"function {made.name!r} {text}. Remove one of the two, or give it another name")
