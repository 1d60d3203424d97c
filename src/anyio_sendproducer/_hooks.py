"""The user's code that runs for each record: types and checks of serializers and partitioners."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from ._exceptions import SettingsError

__all__ = [
    "AnySerializer",
    "Partitioner",
    "Serialize",
    "Serializer",
    "check_partitioner",
    "check_serializer",
    "serialize_with",
]


@runtime_checkable
class Serializer(Protocol):
    """A serializer that gets the topic and the headers. kafka-python's ``Serializer`` has the same
    method.

    The list of headers is a copy of the record's headers. Headers that the serializer adds to this
    list are sent.
    """

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes | None:
        """Turn a key or a value into bytes."""
        ...


AnySerializer = Serializer | Callable[[Any], bytes | None]
"""A :class:`Serializer`, or a plain callable that turns one object into bytes."""

Partitioner = Callable[[str, bytes | None, Sequence[int]], int]
"""A callable that chooses a partition. It gets the topic, the serialized key or None, and the
numbers of the topic's partitions in ascending order. It returns one of these numbers."""

Serialize = Callable[[str, list[tuple[str, bytes]], Any], Any]

_ON_A_THREAD = "must not be async: it is called on a thread, where it may block"


def serialize_with(serializer: AnySerializer | None) -> Serialize | None:
    """Return a function of topic, headers and data, for a serializer of either kind; None for
    None."""
    if serializer is None:
        return None
    if isinstance(serializer, Serializer):
        return serializer.serialize
    # Not a lambda: settings with a TopicSerializer can then be pickled.
    return partial(_serialize_plain, serializer)


def _serialize_plain(
    serializer: Callable[[Any], Any], _topic: str, _headers: list[tuple[str, bytes]], data: Any
) -> Any:
    return serializer(data)


def check_serializer(field: str, serializer: object) -> None:
    """Check that an object can serialize.

    Raises:
        SettingsError: it is neither callable nor a :class:`Serializer`, is a class whose instances
            are serializers, or is async; the message names the field.
    """
    _check_instance(field, serializer, "serialize")
    call: object = serializer.serialize if isinstance(serializer, Serializer) else serializer
    if not callable(call):
        raise SettingsError(
            f"{field} must be a callable or have a serialize(topic, headers, data) method, not "
            f"{type(serializer).__name__}"
        )
    if _is_async(call):
        raise SettingsError(f"{field} {_ON_A_THREAD}")


def check_partitioner(partitioner: object) -> None:
    """Check that an object can choose partitions.

    Raises:
        SettingsError: it is not callable, is a class whose instances are partitioners, or is async.
    """
    _check_instance("partitioner", partitioner, "partition")
    if not callable(partitioner):
        # A str names a partitioner of librdkafka. An object with the method `partition` is a
        # partitioner of kafka-python.
        is_the_clients = isinstance(partitioner, str) or hasattr(partitioner, "partition")
        hint = "; a partitioner of the client is properties={'partitioner': ...}"
        raise SettingsError(
            "partitioner must be a callable that takes the topic, the key and the partitions, not "
            f"{type(partitioner).__name__}{hint if is_the_clients else ''}"
        )
    if _is_async(partitioner):
        raise SettingsError(f"partitioner {_ON_A_THREAD}")


def _is_async(hook: object) -> bool:
    """Whether a hook is an async function, or an object with an async ``__call__``."""
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(
        getattr(type(hook), "__call__", None)  # noqa: B004  # this does not test for callability
    )


def _check_instance(field: str, hook: object, method: str) -> None:
    """Check that a hook is not a class whose instances are hooks.

    A class such as ``bytes`` is a serializer itself.
    """
    if isinstance(hook, type) and (
        hasattr(hook, method) or any("__call__" in vars(one) for one in hook.__mro__)
    ):
        raise SettingsError(f"{field} must be an instance, {hook.__name__}(), not the class")
