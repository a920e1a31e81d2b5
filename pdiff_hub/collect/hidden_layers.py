"""Which tensors of a network belong to the units of each hidden layer, for networks that are a chain of layers.

The chain is read off one run: layers with parameters in the order in which they ran. That says nothing about additions
or transposes between them, so the outcome is proved on numbers: the units of each layer are shuffled, and the outputs
must stay the same, or the network is refused.

Shapes: K networks, C units of a hidden layer, S positions that a unit has in a flattened map, [...] any other dims.
"""
