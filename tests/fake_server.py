"""The chat server that misbehaves as told, of `mua.testing.server`."""

from mua.testing.server import FakeServer, Reply, chat, error

__all__ = ["FakeServer", "Reply", "chat", "error"]
