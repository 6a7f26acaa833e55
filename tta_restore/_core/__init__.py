"""Dispatch, op library, C++ extension, argument checks and color conversion, used by every layer of the package."""
