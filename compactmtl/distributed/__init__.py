"""Several processes that train one network: who they are, what they agree on, and sums over all of them.

Each has a part of every batch. Within `joined` a loss is that of the whole batch on every process, and so is a gradient
once it is averaged over them. What follows from losses and gradients is then the same everywhere, to the bit.
"""
