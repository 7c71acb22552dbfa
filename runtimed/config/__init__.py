"""The configuration: one TOML file (and what it imports) as frozen dataclasses.

A file starts with ``version = 1``. Files named by ``imports`` (globs, relative to the importing file) are merged over
it in order: tables key by key, everything else replaced. A key that is not known is an error that names file, line and
key, so that a misspelt setting is never silently without effect.
"""

from runtimed.config.loading import DEFAULT_PATH, RELOADED, VERSION, dump, load, parse, reloaded
from runtimed.config.settings import (
    BUILTIN,
    DEFAULT_HANDLER,
    DEFAULT_RUNTIME,
    LEVELS,
    BlockIoClass,
    Cni,
    Config,
    ContentStore,
    Cri,
    CriRuntime,
    CriStreaming,
    Doctor,
    Gc,
    ImageVerification,
    Log,
    Nri,
    ProxyPlugin,
    Registry,
    RegistryCredentials,
    Restart,
    Runtime,
    Socket,
    StreamProcessor,
    Workers,
)
from runtimed.config.toml import dotted, dump_value, line_of

__all__ = [
    "BlockIoClass",
    "DEFAULT_PATH",
    "RELOADED",
    "dump",
    "load",
    "parse",
    "reloaded",
    "VERSION",
    "BUILTIN",
    "DEFAULT_RUNTIME",
    "DEFAULT_HANDLER",
    "LEVELS",
    "Socket",
    "Log",
    "Workers",
    "ContentStore",
    "Gc",
    "Doctor",
    "RegistryCredentials",
    "Registry",
    "Restart",
    "Runtime",
    "ImageVerification",
    "ProxyPlugin",
    "StreamProcessor",
    "CriRuntime",
    "Cni",
    "CriStreaming",
    "Cri",
    "Nri",
    "Config",
    "dotted",
    "dump_value",
    "line_of",
]
