"""One file a penalty: its options, value, derivative and proximal operator. `sparsity.registry` finds it by its name."""
