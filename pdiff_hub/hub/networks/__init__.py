"""One generated network as a Hub repository of its own: published, and opened again."""

from pdiff_hub.hub.networks.generated import GeneratedNetwork
from pdiff_hub.hub.networks.pushing import push_network

__all__ = ["GeneratedNetwork", "push_network"]
