"""One generated network as its own Hub repository: how to publish it, and how to open it again."""

from pdiff_hub.hub.networks.generated import GeneratedNetwork
from pdiff_hub.hub.networks.pushing import push_network

__all__ = ["GeneratedNetwork", "push_network"]
