"""Dispatch, op library, C++ extension, argument checks and color: what every layer of the package stands on."""
