"""Recurrent layers after surgery: their own numbers, and the list of weights that they hand to the kernel."""

from __future__ import annotations

from torch import nn

_GATES = {"LSTM": 4, "GRU": 3}


def mend(module: nn.RNNBase | nn.RNNCellBase) -> None:
    """Make a recurrent layer or cell agree with the shapes of its tensors."""
    if isinstance(module, nn.RNNCellBase):
        gates = 4 if isinstance(module, nn.LSTMCell) else 3 if isinstance(module, nn.GRUCell) else 1
        rows, module.input_size = module.weight_ih.shape
        module.hidden_size = rows // gates
        return
    own = dict(module.named_parameters(recurse=False))
    rows, module.input_size = own["weight_ih_l0"].shape
    module.hidden_size = rows // _GATES.get(module.mode, 1)
    if module.proj_size:
        module.proj_size = own["weight_hr_l0"].shape[0]
    module._init_flat_weights()  # the list still holds the parameters that were replaced
