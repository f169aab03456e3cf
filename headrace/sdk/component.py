"""`Component`: the functions and hooks of one component, gathered by decorators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

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
        self._shutdown: Hook | None = None

    @overload
    def action(self, function: _F) -> _F: ...
    @overload
    def action(self, *, name: str) -> Callable[[_F], _F]: ...
    def action(self, function: _F | None = None, *, name: str = "") -> _F | Callable[[_F], _F]:
        """Handles messages of earlier steps."""
        return self._register("action", function, name)

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

    def shutdown(self, function: _F) -> _F:
        """Runs once after the last call; takes nothing, a Context or the configuration."""
        if self._shutdown is not None:
            raise DefinitionError("the component has two shutdown hooks")
        self._shutdown = Hook(function)
        return function

    def _register(self, kind: str, function: _F | None, name: str) -> _F | Callable[[_F], _F]:
        def register(target: _F) -> _F:
            made = Function(name or getattr(target, "__name__", ""), kind, target)
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
    def shutdown_hook(self) -> Hook | None:
        return self._shutdown

    def resolve(self) -> None:
        """Reads all annotations and builds the decoders; DefinitionError names what does not fit.

        Done by the loader once the module is complete, so that types may stand below the functions.
        """
        if not self._functions:
            raise DefinitionError("the component has no function; decorate one with @component.action")
        for function in self._functions.values():
            function.resolve()
        for hook in (self._init, self._shutdown):
            if hook is not None:
                hook.resolve()

    def function(self, name: str) -> Function:
        """The function of that name; without a name the only one. DefinitionError lists what there is."""
        if not name and len(self._functions) == 1:
            return next(iter(self._functions.values()))
        try:
            return self._functions[name]
        except KeyError:
            known = ", ".join(sorted(self._functions))
            raise DefinitionError(f"the component has no function {name!r}; it has: {known}") from None
