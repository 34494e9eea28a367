"""The torch backend: live modules."""
