"""Run Python functions on the machines of a mesh."""
