"""A containerd's configuration, as far as it can be ours."""

from runtimed.containerd_config.migrating import DEFAULT_PATH, Migrated, migrate

__all__ = ["DEFAULT_PATH", "Migrated", "migrate"]
